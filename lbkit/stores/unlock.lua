-- Give a lock back, if it is still ours. KEYS[1] is the lock, ARGV[1] what we took it with.
if redis.call("GET", KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call("UNLINK", KEYS[1])

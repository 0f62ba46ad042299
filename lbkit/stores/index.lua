-- The sessions of one user. Those that have expired go here, so nothing has to listen for their end.
--
-- KEYS[1]  the index, with each session's end in Unix milliseconds as its score
-- ARGV     now, a session to add or "", its end, sessions to remove
for from = 4, #ARGV, 1000 do
    redis.call("ZREM", KEYS[1], unpack(ARGV, from, math.min(from + 999, #ARGV)))
end
if ARGV[2] ~= "" then redis.call("ZADD", KEYS[1], ARGV[3], ARGV[2]) end
redis.call("ZREMRANGEBYSCORE", KEYS[1], "-inf", ARGV[1])
local last = redis.call("ZRANGE", KEYS[1], -1, -1, "WITHSCORES")
if last[2] then redis.call("PEXPIREAT", KEYS[1], string.format("%.0f", last[2])) end

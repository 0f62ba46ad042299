-- The sessions of one user.
--
-- KEYS[1]  the index
-- ARGV     now, a session to add or "", its end, sessions to remove
for from = 4, #ARGV, 1000 do
    redis.call("ZREM", KEYS[1], unpack(ARGV, from, math.min(from + 999, #ARGV)))
end
if ARGV[2] ~= "" then redis.call("ZADD", KEYS[1], ARGV[3], ARGV[2]) end
tidy(KEYS[1], ARGV[1])

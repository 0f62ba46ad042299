-- The index of a user: sessions, with the end of each in Unix milliseconds as its score. Those that have
-- expired go whenever it is written, so nothing has to listen for their end.
local function tidy(index, now)
    redis.call("ZREMRANGEBYSCORE", index, "-inf", now)
    local last = redis.call("ZRANGE", index, -1, -1, "WITHSCORES")
    if last[2] then redis.call("PEXPIREAT", index, string.format("%.0f", last[2])) end
end


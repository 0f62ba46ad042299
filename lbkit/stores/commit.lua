-- One delta, applied to one session. All checks come first: what a script has written, Redis does not take back.
--
-- KEYS[1]  the session
-- KEYS[2]  an index to list it in, or none
-- ARGV     new|old  whole|part  drop|keep  milliseconds to live, or ""
--          then four lists, each behind the number of its items:
--          field, sha1 of the expected value or ""    field to delete    field, value    field, increment
--          and for an index: now, what the session is called there, its end, or "" to take it out
local LARGEST = 9007199254740991 -- beyond it, Lua's numbers round
local CHUNK = 2000               -- items in one call: unpack gives up at some 8000

local key = KEYS[1]
local at = 4

local function list()
    at = at + 1
    local first = at + 1
    at = at + tonumber(ARGV[at])
    return first, at
end

local expect, expect_end = list()
local del, del_end = list()
local set, set_end = list()
local incr, incr_end = list()
local now, session, ends = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]

local function each_chunk(first, last, call)
    for from = first, last, CHUNK do
        redis.call(call, key, unpack(ARGV, from, math.min(from + CHUNK - 1, last)))
    end
end

-- Whatever else somebody has put under this name is no session.
local kind = redis.call("TYPE", key).ok
if ARGV[1] == "new" and kind ~= "none" then return {"TAKEN"} end
if ARGV[1] == "old" then
    if kind ~= "hash" then return {"GONE"} end
    local forward = redis.call("HGET", key, "\0r")
    if forward then return {"MOVED", forward} end
end

local present = 0
for i = expect, expect_end, 2 do
    local value = redis.call("HGET", key, ARGV[i])
    if (value and redis.sha1hex(value) or "") ~= ARGV[i + 1] then return {"CONFLICT", ARGV[i]} end
    if value then present = present + 1 end
end
if ARGV[2] == "whole" and redis.call("HLEN", key) ~= present then return {"CONFLICT"} end

if incr <= incr_end then
    local replaced = {}
    for i = del, del_end do replaced[ARGV[i]] = "0" end
    for i = set, set_end, 2 do replaced[ARGV[i]] = ARGV[i + 1] end
    for i = incr, incr_end, 2 do
        local value = replaced[ARGV[i]] or (ARGV[3] == "keep" and redis.call("HGET", key, ARGV[i])) or "0"
        local integer = value == "0" or string.find(value, "^%-?[1-9]%d*$")
        local before, by = tonumber(value), tonumber(ARGV[i + 1])
        if not integer or math.max(math.abs(before), math.abs(by), math.abs(before + by)) > LARGEST then
            return {"NOT_INT", ARGV[i]}
        end
    end
end

-- The index comes first: should something else be under its name, or the memory be full, this stops here.
if KEYS[2] then
    if ends ~= "" then
        redis.call("ZADD", KEYS[2], ends, session)
    else
        redis.call("ZREM", KEYS[2], session)
    end
    tidy(KEYS[2], now)
end

if ARGV[3] == "drop" then redis.call("UNLINK", key) end
each_chunk(del, del_end, "HDEL")
each_chunk(set, set_end, "HSET")
local answer = {"OK"}
for i = incr, incr_end, 2 do
    answer[#answer + 1] = redis.call("HINCRBY", key, ARGV[i], ARGV[i + 1])
end
if ARGV[4] ~= "" then redis.call("PEXPIRE", key, ARGV[4]) end
return answer

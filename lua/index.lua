-- remember notes a session in its owner's index: a sorted set of session IDs, each with
-- the second, in Redis' own time, after which the session is certainly over. Entries that
-- are over go, and the index expires with its last one.
--
-- ttl is how many seconds the session lives, and wait how many it may take until it is
-- written: 0 if it is written already, nil if this very script writes it, which alone may
-- lower an entry. One with half a second is pending: its session may be yet to be written. A
-- pending entry stays so, and is never lowered, by nobody.
local function remember(index, id, ttl, wait)
	local now = tonumber(redis.call("TIME")[1])
	local score = now + ttl + 1
	local noted = tonumber(redis.call("ZSCORE", index, id) or 0)
	if wait and wait > 0 or noted > math.floor(noted) then
		score = math.max(score + (wait or 0), math.floor(noted)) + 0.5
	elseif wait then
		score = math.max(score, noted)
	end
	-- First, and before any other write: a Redis whose memory is full refuses this one, and
	-- would no longer refuse it after another.
	redis.call("ZADD", index, score, id)
	redis.call("ZREMRANGEBYSCORE", index, "-inf", "(" .. now)
	local last = redis.call("ZREVRANGE", index, 0, 0, "WITHSCORES")
	redis.call("EXPIRE", index, math.ceil(tonumber(last[2])) - now)
end

-- Takes back what a read has added to a session's life and its owner's index does not know
-- of. It writes nothing that a Redis whose memory is full would refuse.
-- KEYS: 1 the session, 2 its owner's index
-- ARGV: 1 session ID
-- Returns 1
local listed = redis.call("ZSCORE", KEYS[2], ARGV[1])
local left = math.floor(listed or 0) - redis.call("TIME")[1]
if left > 0 and left * 1000 < redis.call("PTTL", KEYS[1]) then redis.call("EXPIRE", KEYS[1], left) end
return 1

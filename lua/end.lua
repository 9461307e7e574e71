-- Ends a session that another ID has replaced, and does so once: a repeat finds its own
-- token in the renewal marker.
-- KEYS: 1 the session, 2 its marker, if it has one
-- ARGV: 1 token, 2 the marker's expiry in seconds
-- Returns 1, or 0 if the session was gone already
if KEYS[2] and redis.call("GET", KEYS[2]) == ARGV[1] then return 1 end
if redis.call("DEL", KEYS[1]) == 0 then return 0 end
if KEYS[2] then redis.call("SET", KEYS[2], ARGV[1], "EX", ARGV[2]) end
return 1

-- Moves a session to a new ID on a single server, and does so once: a repeat finds its own
-- token in the renewal marker.
-- KEYS, ARGV: as move takes them, the loaded session first among the old ones
-- Returns 1, or 0 if the loaded session was gone already
if redis.call("GET", KEYS[4]) == ARGV[5] then return 1 end
if redis.call("EXISTS", KEYS[3]) == 0 then return 0 end
move(1, 1)
return 1

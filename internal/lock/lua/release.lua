-- Gives up what a process has of a lock: the lock itself, a reservation, its place in the
-- queue.
-- KEYS: 1 the session, 2 its lock, 3 its version, 4 its queue
-- ARGV: 1 token, 2 process if nobody of it waits any more, or "", 3 a reservation's expiry
--       in ms
-- Returns 1
if ARGV[2] ~= "" then redis.call("LREM", KEYS[4], 0, ARGV[2]) end
local holder = redis.call("GET", KEYS[2])
if holder == ARGV[1] or holder == ARGV[2] then
	if not handover(KEYS[2], KEYS[4], KEYS[1], ARGV[3]) then redis.call("DEL", KEYS[2]) end
end
return 1

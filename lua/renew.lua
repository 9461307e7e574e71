-- Moves a session to a new ID on a single server, and does so once: a repeat finds its own
-- token in the renewal marker.
-- KEYS: 1 the new session, 2 its owner's index or any key if it has none; then, by twos,
--       an old session and its marker, the loaded one first
-- ARGV: 1 the new ID if it has an owner, or "", 2 seconds in the index, 3 token,
--       4 the marker's expiry in seconds, 5 the session's, 6 its value; then the old IDs
-- Returns 1, or 0 if the loaded session was gone already
if redis.call("GET", KEYS[4]) == ARGV[3] then return 1 end
if redis.call("EXISTS", KEYS[3]) == 0 then return 0 end
if ARGV[1] ~= "" then remember(KEYS[2], ARGV[1], tonumber(ARGV[2]), 0) end
redis.call("SET", KEYS[1], ARGV[6], "EX", ARGV[5])
for i = 3, #KEYS, 2 do
	redis.call("DEL", KEYS[i])
	redis.call("SET", KEYS[i + 1], ARGV[3], "EX", ARGV[4])
	if ARGV[1] ~= "" then redis.call("ZREM", KEYS[2], ARGV[7 + (i - 3) / 2]) end
end
return 1

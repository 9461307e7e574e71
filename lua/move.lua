-- forget takes a session that has ended out of its owner's index, if there is one. Where that is
-- denied, readers do it.
local function forget(index, owned, id)
	if owned then redis.pcall("ZREM", index, id) end
end

-- move writes a session under its new ID and ends the old ones.
-- KEYS, from k: the new session; its owner's index, or any key if it has none; then, by
--       twos, an old session and its renewal marker
-- ARGV, from a: the new ID if it has an owner, or ""; seconds in the index; the session's
--       expiry in seconds; its value; the markers' token; their expiry in seconds; the old
--       IDs
local function move(k, a)
	local owned = ARGV[a] ~= ""
	if owned then remember(KEYS[k + 1], ARGV[a], tonumber(ARGV[a + 1])) end
	redis.call("SET", KEYS[k], ARGV[a + 3], "EX", ARGV[a + 2])
	for i = k + 2, #KEYS, 2 do
		redis.call("DEL", KEYS[i])
		redis.call("SET", KEYS[i + 1], ARGV[a + 4], "EX", ARGV[a + 5])
		forget(KEYS[k + 1], owned, ARGV[a + 6 + (i - k - 2) / 2])
	end
end

-- Writes a session, or deletes it, if it is what the writer saw; then releases the lock.
-- KEYS: 1 the session, 2 its lock, 3 its version, 4 its queue, 5 to delete: the renewal
--       marker; to write a large value: the key that holds it; else the session again;
--       6... the prelude's
-- ARGV: 1 token, 2 process, 3 the queue's expiry in ms, 0 to not wait, 4 a reservation's
--       in ms, 5 the new version, 6 its expiry in s, 7 value, 8 its expiry in s, 0 to
--       delete, 9 the marker's, 10 how many versions there are; 11... the prelude's; at
--       the end, by twos, versions and their digests: what was read, and then what earlier
--       attempts may have written
-- Returns "done", "gone", "conflict", "unknown", or, if another holds the lock, what taken
-- returns. A repeat finds its own version.
local holder = redis.call("GET", KEYS[2])
local staged = ARGV[8] ~= "0" and KEYS[5] ~= KEYS[1]

local function finish(result)
	if holder == ARGV[1] or holder == ARGV[2] then
		if not handover(KEYS[2], KEYS[4], KEYS[1], ARGV[4]) then redis.call("DEL", KEYS[2]) end
	end
	if staged then redis.call("DEL", KEYS[5]) end
	return result
end

local first = #ARGV - 2 * tonumber(ARGV[10]) + 1
local function seen(what, from)
	for i = from, #ARGV, 2 do
		if what == ARGV[i] then return true end
	end
	return false
end

local version = redis.call("GET", KEYS[3])
if version == ARGV[5] then return finish("done") end
if version and not seen(version, first) then
	if string.sub(version, -1) ~= "?" then return finish(redis.call("EXISTS", KEYS[1]) == 1 and "conflict" or "gone") end
	version = false -- nobody has written since it ran out
end
-- While lock and version are there, nobody else has written, and the value need not be read.
if not version or holder ~= ARGV[1] then
	local value = redis.call("GET", KEYS[1])
	if not value then return finish("gone") end
	local digest = redis.sha1hex(value)
	if version and not seen(digest, first + 1) then return finish("conflict") end
	-- Without a version, what an earlier attempt may have written may be another's, who
	-- wrote the same.
	if not version and digest ~= ARGV[first + 1] then return finish(seen(digest, first + 1) and "unknown" or "conflict") end
end
if holder and holder ~= ARGV[1] and holder ~= ARGV[2] then
	return taken(KEYS[2], KEYS[4], ARGV[2], ARGV[3])
end
if (prelude or staged) and redis.call("EXISTS", KEYS[1]) == 0 then return finish("gone") end
if staged and redis.call("EXISTS", KEYS[5]) == 0 then -- nothing is written, by the prelude neither
	return redis.error_reply("ERR Redis has evicted the value before it was written")
end
if prelude then prelude() end
if staged then
	redis.call("EXPIRE", KEYS[5], ARGV[8]) -- before: or a session whose user lacks this right would end with what was staged
	redis.call("RENAME", KEYS[5], KEYS[1])
elseif ARGV[8] ~= "0" then
	if not redis.call("SET", KEYS[1], ARGV[7], "EX", ARGV[8], "XX") then return finish("gone") end
else
	if redis.call("DEL", KEYS[1]) == 0 then return finish("gone") end
	redis.call("SET", KEYS[5], ARGV[5], "EX", ARGV[9])
end
redis.call("SET", KEYS[3], ARGV[5], "EX", ARGV[6])
return finish("done")

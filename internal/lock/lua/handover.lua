-- handover gives the lock to the process that has waited for longest, for as long as it
-- may take to come, and wakes it. A process is named by its channel. Returns that name, or
-- false: nobody waits.
local function handover(lock, queue, session, reserve)
	local next = redis.pcall("LPOP", queue)
	if next and next.err then -- what is no queue must not fail a write that is done
		redis.call("DEL", queue)
		next = redis.call("LPOP", queue) -- a right that lacks is an error still
	end
	if not next then return false end
	redis.call("SET", lock, next, "PX", reserve)
	redis.pcall("PUBLISH", next, session) -- an ACL may forbid it: then the process asks by itself
	return next
end

-- taken says for how long the lock is taken, in milliseconds, and, if the process is to
-- wait, notes it in the queue, once: the number is negative if it was not there yet. The
-- queue lives a little longer than it takes the process to ask again that asks least often.
local function taken(lock, queue, process, wait)
	local left = math.max(0, redis.call("PTTL", lock)) -- 0: it has no expiry, which somebody else has done
	if wait ~= "0" then
		if not redis.call("LPOS", queue, process) then
			redis.call("RPUSH", queue, process)
			left = -left
		end
		if redis.call("PTTL", queue) < tonumber(wait) then redis.call("PEXPIRE", queue, wait) end
	end
	return left
end

-- KEYS: 1 the owner's index
-- ARGV: 1 session ID, 2 ttl and 3 wait as remember takes them
-- Returns 1
remember(KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]))
return 1

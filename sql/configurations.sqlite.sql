-- configurations: the statement that SQLite words in its own way.

-- name: overwrite_secret_configuration(key)!
-- Differs: SQLite has no function that repeats a letter.
-- Write over a ciphertext before it is deleted, so that it is in no copy of the row that a page keeps when
-- rows move. As long as the value was: the row stays where it is.
UPDATE configurations
SET value = printf('%.*c', length(value), 'A')
WHERE key = :key AND is_secret = TRUE;

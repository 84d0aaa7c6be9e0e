-- 0004-create-auth-tokens, undone: every token stops working.

DROP TABLE IF EXISTS auth_tokens;

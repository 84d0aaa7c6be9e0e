-- 0012-create-lease-waiters, undone: those who wait lose their place.

DROP TABLE IF EXISTS lease_waiters;

-- 0017-create-budget-reservations, undone: calls in flight are not counted against the budgets any more.

DROP TABLE IF EXISTS budget_reservations;

"""Leasing: what worktrees' leases, projects' locks and tasks' claims have in common.

It knows no table: the statements that take, renew and release a row stand with each table, and
`metastore.repositories.leasable` runs them for all of them in the same way.
"""

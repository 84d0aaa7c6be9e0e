"""Migrations: the layer over yoyo that brings a database from one revision to another.

yoyo's file format and bookkeeping tables, and a stricter way of applying: a migration is applied,
checked, recorded with a checksum and committed in one transaction, or not at all. Migrators on
the same database wait for each other at `BEGIN IMMEDIATE`, a lock that dies with its process,
and look again inside the transaction whether their migration is still to be done.

`yoyo apply` runs the same code, through the backend that yoyo finds under the scheme
`metastore://`.
"""

from metastore.migrations.operations import (
    APPLIED_SQL,
    BOOKKEEPING_TABLES,
    Difference,
    HistoryEntry,
    MetastoreBackend,
    Migration,
    MigrationStatus,
    adopt,
    check,
    check_revision,
    differences,
    downgrade,
    fingerprint,
    fingerprints,
    head,
    history,
    known,
    new,
    plan,
    rollbacks,
    status,
    upgrade,
    verify,
)

__all__ = [
    "APPLIED_SQL",
    "BOOKKEEPING_TABLES",
    "Difference",
    "HistoryEntry",
    "MetastoreBackend",
    "Migration",
    "MigrationStatus",
    "adopt",
    "check",
    "check_revision",
    "differences",
    "downgrade",
    "fingerprint",
    "fingerprints",
    "head",
    "history",
    "known",
    "new",
    "plan",
    "rollbacks",
    "status",
    "upgrade",
    "verify",
]

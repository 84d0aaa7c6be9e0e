"""Migrations: the layer over yoyo that takes a database from one revision to another."""

from metastore.backends.base import Difference
from metastore.migrations.files import Migration
from metastore.migrations.operations import (
    adopt,
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
    schema_check,
    status,
    upgrade,
    verify,
)
from metastore.migrations.status import BOOKKEEPING_TABLES, HistoryEntry, MigrationStatus

__all__ = [
    "BOOKKEEPING_TABLES",
    "Difference",
    "HistoryEntry",
    "Migration",
    "MigrationStatus",
    "adopt",
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
    "schema_check",
    "status",
    "upgrade",
    "verify",
]

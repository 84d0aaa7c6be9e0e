"""The contenders: each does the same work on the same database file, through its own mapping."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from benchmarks.contenders.base import Contender

__all__ = ["ALL", "LEVELS", "OURS", "Entry", "make"]


LEVELS = (1, 8, 64, 512)

FEW = (1, 8)
"""Piccolo connects for each query: 64 of its tasks get 15 appends a second between them."""

POOLED = (8, 64)
"""One task is served by one connection, and with 512 a pool of them is slower than with 64."""


class Entry(NamedTuple):
    """A contender in one of its settings.

    Attributes:
        key: what the results are filed under.
        peer: what the tables call it; of several settings of one peer, the better counts.
        module: its module here, which has a `make(**settings)`.
        settings: what `make` is called with.
        tasks: with how many tasks it is measured.
        quick: whether the short run includes it.
    """

    key: str
    peer: str
    module: str
    settings: dict[str, int | None]
    tasks: tuple[int, ...] = LEVELS
    quick: bool = True


OURS = "metastore"

ALL = {
    entry.key: entry
    for entry in (
        Entry(OURS, OURS, "ours", {}),
        Entry("raw", "raw sqlite3, one by one", "raw_sqlite3", {}, (1,)),
        Entry("aiosqlite", "tutorial aiosqlite", "tutorial_aiosqlite", {}),
        Entry("core-1", "SQLAlchemy Core", "sqlalchemy_core", {"pool_size": 1}),
        Entry("core", "SQLAlchemy Core", "sqlalchemy_core", {"pool_size": None}, POOLED, False),
        Entry("sqlmodel-1", "SQLModel", "sqlmodel_orm", {"pool_size": 1}),
        Entry("sqlmodel", "SQLModel", "sqlmodel_orm", {"pool_size": None}, POOLED, False),
        Entry("tortoise", "Tortoise", "tortoise_orm", {}, quick=False),
        Entry("piccolo", "Piccolo", "piccolo_orm", {}, FEW, False),
        Entry("peewee-1", "Peewee", "peewee_orm", {"pool_size": 1}, quick=False),
        Entry("peewee", "Peewee", "peewee_orm", {"pool_size": None}, POOLED, False),
    )
}
"""Every contender, by key."""


def make(key: str) -> Contender:
    """Return the contender of this key, not yet connected."""
    entry = ALL[key]
    module = import_module(f"benchmarks.contenders.{entry.module}")
    contender: Contender = module.make(**entry.settings)
    return contender

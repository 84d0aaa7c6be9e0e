"""What SQLAlchemy Core and SQLModel share: the engine and the two column types."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON, Text, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.types import TypeDecorator

from benchmarks.contenders.base import BUSY_TIMEOUT, encode_time
from metastore.audit.links import link_hash

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["JSON", "Time", "make_engine"]


class Time(TypeDecorator[datetime]):
    """A time, in the text that the tables hold."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: object) -> str | None:
        """Encode."""
        return None if value is None else encode_time(value)

    def process_result_value(self, value: Any, dialect: object) -> datetime | None:
        """Decode."""
        return None if value is None else datetime.fromisoformat(value)


def make_engine(path: Path, pool_size: int | None) -> AsyncEngine:
    """Return an engine with a pool of `pool_size`, or with the default pool.

    The driver begins a transaction with the first write, at once for writing: that costs no
    round trip, and nobody gets "database is locked" for having read before.
    """
    pool = {} if pool_size is None else {"pool_size": pool_size, "max_overflow": 0}
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{path.absolute()}",
        connect_args={"timeout": BUSY_TIMEOUT, "isolation_level": "IMMEDIATE"},
        pool_timeout=BUSY_TIMEOUT,
        **pool,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.create_function("metastore_sha256", -1, link_hash, deterministic=True)
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    return engine

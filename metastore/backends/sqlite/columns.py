"""How SQLite stores the values of rows: it has no types for times, booleans, days or JSON.

| annotation | column |
|---|---|
| `str` and enumerations | TEXT |
| `int`, `bool`, `float` | INTEGER, 0 or 1, REAL |
| `datetime` | TEXT, UTC, `2026-01-31T23:59:59.123Z`, which sorts by time |
| a day | TEXT, UTC, `2026-01-31` |
| `dict[...]`, `list[...]`, `Any` | TEXT, JSON |
| `bytes`, and `tuple[float, ...]` as little-endian float32 | BLOB |
"""

from __future__ import annotations

from datetime import date, datetime

from metastore.backends.base import Columns
from metastore.codec import timestamp

__all__ = ["COLUMNS"]


def _day(moment: datetime) -> str:
    return timestamp(moment)[:10]


COLUMNS = Columns(
    dialect="sqlite",
    write_time=timestamp,
    read_time=datetime.fromisoformat,
    write_boolean=int,
    read_boolean=bool,
    write_json=bytes.decode,
    write_day=_day,
    read_day=date.fromisoformat,
    storage={
        int: (int, "an integer"),
        bool: (int, "an integer"),
        float: (float, "a number"),
        bytes: (bytes, "a blob"),
        tuple: (bytes, "a blob"),
    },
)

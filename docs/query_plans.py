"""The golden query plans of all statements that search for rows.

A statement that loses its index shows up as a changed line in a review, not as a slow day.
"""

from __future__ import annotations

import re
import sqlite3
from typing import TYPE_CHECKING

from metastore.repositories import repository_types
from metastore.statements import read_statements

if TYPE_CHECKING:
    from collections.abc import Iterator

    from metastore.codec import Row

__all__ = ["is_current", "is_of_this_release", "plan_of", "render", "searching_statements"]

_SEARCHES = re.compile(r"\b(?:WHERE|ORDER)\b")
_HEADER = """\
Query plans by {made_by} written by `python -m docs.generate` from the schema alone.

SEARCH goes straight to the rows through an index; SCAN would read them all, and USE TEMP B-TREE
would sort them.
"""


def render(connection: sqlite3.Connection) -> str:
    """Return every searching statement with its query plan, table by table."""
    parts = [_HEADER.format(made_by=_made_by())]
    for name, sql in searching_statements():
        plan = "".join(f"    {line}\n" for line in plan_of(connection, sql))
        parts.append(f"{name}\n{plan}")
    return "\n".join(parts)


def is_of_this_release(plans: str) -> bool:
    """Return whether plans were made by the running release of SQLite.

    Each release chooses and words plans differently.
    """
    return _made_by() in plans.partition("\n")[0]


def is_current(found: str, expected: str) -> bool:
    """Return whether the plans are equal, or cannot be compared with this release of SQLite."""
    return found == expected or (found != "" and not is_of_this_release(found))


def searching_statements() -> Iterator[tuple[str, str]]:
    """Yield the name, `table.statement`, and text of each statement that searches for rows."""
    for repository in sorted(repository_types(), key=lambda it: it.table):
        row_type: type[Row] = repository.row_type
        statements = read_statements(repository.table, row_type, "sqlite")
        for name, datum in statements.items():
            if _SEARCHES.search(datum.sql):
                yield f"{repository.table}.{name}", datum.sql


def plan_of(connection: sqlite3.Connection, sql: str) -> list[str]:
    """Return the lines of a statement's query plan, indented by depth."""
    depths = {0: -1}
    lines = []
    rows = connection.execute(f"EXPLAIN QUERY PLAN {sql}", _Unbound()).fetchall()
    for node, parent, _, detail in rows:
        depths[node] = depths[parent] + 1
        lines.append("  " * depths[node] + detail)
    return lines


class _Unbound(dict[str, None]):
    """NULL for every parameter: a plan does not depend on their values."""

    def __missing__(self, name: str) -> None:
        return None


def _made_by() -> str:
    major, minor, _ = sqlite3.sqlite_version_info
    return f"SQLite {major}.{minor},"

"""Writes the files generated from the schema and the statements, or checks that they are current.

python -m docs.generate            write stale files
python -m docs.generate --check    name stale files and fail
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from docs import query_plans, schema_page, statement_types

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

__all__ = ["GENERATED", "ROOT", "Generated", "main", "stale"]

ROOT = Path(__file__).resolve().parent.parent
"""The checkout that the files are written to."""


class Generated(NamedTuple):
    """A generated file.

    Attributes:
        name: its path in the checkout.
        render: generates its text from a migrated database.
        is_current: returns whether an existing text is as good as the generated one.
    """

    name: str
    render: Callable[[sqlite3.Connection], str]
    is_current: Callable[[str, str], bool]


GENERATED = (
    Generated("docs/schema.md", schema_page.render, str.__eq__),
    Generated("metastore/statement_types.pyi", statement_types.render, str.__eq__),
    Generated("tests/golden/query_plans.txt", query_plans.render, query_plans.is_current),
)


def stale() -> dict[str, str]:
    """Return the names of missing or stale files, and their correct text."""
    with contextlib.closing(schema_page.migrated()) as connection:
        rendered = {file: file.render(connection) for file in GENERATED}
    return {
        file.name: text
        for file, text in rendered.items()
        if not file.is_current(_found(file), text)
    }


def _found(file: Generated) -> str:
    path = ROOT / file.name
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _write(name: str, text: str) -> None:
    path = ROOT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail if a file is stale.")
def main(check: bool) -> None:
    """Write the files generated from the schema and the statements."""
    found = stale()
    for name, text in found.items():
        if check:
            click.echo(f"{name} is stale; run: python -m docs.generate", err=True)
        else:
            _write(name, text)
            click.echo(f"wrote {name}")
    sys.exit(1 if check and found else 0)


if __name__ == "__main__":
    main()

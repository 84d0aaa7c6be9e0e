"""`metastore sql`: the statements as the database receives them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from metastore.cli import Refused, database_option, json_option, print_json, print_table, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metastore.backends.base import DatabaseUrl
    from metastore.codec import Row

__all__ = ["sql"]


class StatementText(msgspec.Struct, frozen=True):
    """A statement of a table.

    Attributes:
        parameters: the parameters, in binding order.
        comment: why it exists, and what no row means.
        sql: its text, with named parameters and all columns.
    """

    table: str
    name: str
    parameters: Sequence[str]
    comment: str
    sql: str


@click.command()
@click.argument("name", metavar="[TABLE|STATEMENT]", required=False)
@click.option("--dialect", help="The SQL dialect. Default: that of the database's URL.")
@database_option
@json_option
def sql(name: str | None, dialect: str | None, url: DatabaseUrl, as_json: bool) -> None:
    """Print the SQL that metastore sends: every statement of a table, or one statement.

    Without an argument, list all tables and the names of their statements. Paste the output after
    EXPLAIN QUERY PLAN. The database is not opened.
    """
    statements = _statements(dialect or url.dialect)
    if name is not None:
        statements = [it for it in statements if name in (it.table, it.name)]
        if not statements:
            raise Refused(f"no table or statement is named {name!r}; `metastore sql` lists them")
    if as_json:
        print_json(statements)
    elif name is None:
        print_table(["table", "statement"], [(it.table, it.name) for it in statements])
    else:
        for number, statement in enumerate(statements):
            if number:
                say()
            _print(statement)


def _statements(dialect: str) -> list[StatementText]:
    from metastore import resources
    from metastore.repositories import repository_types
    from metastore.statements import read_statements

    known = resources.dialects()
    if dialect not in known:
        raise Refused(f"no dialect is named {dialect!r}; there is {', '.join(known)}")
    statements = []
    for repository in sorted(repository_types(), key=lambda it: it.table):
        row_type: type[Row] = repository.row_type
        statements += [
            StatementText(
                repository.table,
                name,
                datum.parameters or (),
                datum.doc_comments.strip(),
                datum.sql,
            )
            for name, datum in read_statements(repository.table, row_type, dialect).items()
        ]
    return statements


def _print(statement: StatementText) -> None:
    say(f"-- {statement.table}.{statement.name}({', '.join(statement.parameters)})")
    for line in statement.comment.splitlines():
        say(f"-- {line}")
    for line in f"{statement.sql};".splitlines():
        say(line)

"""The page `docs/schema.md`, generated from a migrated database.

Columns, keys and indexes come from SQLite's pragmas. Comments and constraints come from the text of
each CREATE, which SQLite keeps verbatim, and the comments above an index or a trigger from its
migration.
"""

from __future__ import annotations

import re
import sqlite3
from typing import TYPE_CHECKING, NamedTuple

from metastore import migrations
from metastore.audit.links import link_hash
from metastore.backends.sqlite.schema import SqliteSchemaConnection

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from metastore.backends.base import SchemaObject

__all__ = ["Definition", "Table", "migrated", "parse_table", "render"]

_HEADER = """\
# The schema

Look up a table, what its columns hold, and what the database refuses. The migrations are listed
[at the end](#migrations).

`python -m docs.generate` writes this page from a migrated SQLite database. Change a migration, not
the page.

For every table:

- Ids are version 7 UUIDs in lower-case text, so they sort by time.
- Times are UTC text of fixed width, `2026-01-31T23:59:59.123Z`: text order is time order.
- JSON is text, checked by the database; booleans are 0 and 1.
- Tables are `STRICT`, and every foreign key is enforced.
"""

_COMMENT = re.compile(r"^\s*--[ ]?", re.MULTILINE)
_PIECE = re.compile(
    r"""
      (?P<literal>'(?:[^']|'')*'|"(?:[^"]|"")*")
    | (?P<comment>--[^\n]*)
    | (?P<blank>\n[ \t]*(?=\n))
    | (?P<mark>[(),])
    | (?P<text>[^'"(),\n-]+|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_VIEW_COMMENT = re.compile(r"(?<=\bAS\n)(?:\s*--[^\n]*\n)+")
_CONSTRAINT = re.compile(
    r"(?:CONSTRAINT (?P<name>\w+) )?(?P<text>(?:CHECK|UNIQUE|PRIMARY|FOREIGN).*)"
)


class Definition(NamedTuple):
    """A column or a constraint of a CREATE TABLE.

    Attributes:
        name: the name of the column or constraint; empty for an unnamed constraint.
        text: the rest, on one line.
        comment: the comment above it.
    """

    name: str
    text: str
    comment: str


class Table(NamedTuple):
    """A parsed CREATE TABLE.

    Attributes:
        comment: the purpose of the table: its opening comment, up to an empty line.
        columns: its columns.
        constraints: its table constraints.
    """

    comment: str
    columns: list[Definition]
    constraints: list[Definition]


class Column(NamedTuple):
    """A column as SQLite describes it."""

    name: str
    type: str
    nullable: bool
    default: str | None
    in_primary_key: bool


class ForeignKey(NamedTuple):
    """A foreign key of one column."""

    column: str
    parent: str
    parent_column: str
    on_update: str
    on_delete: str


def migrated() -> sqlite3.Connection:
    """Return an in-memory database with all migrations applied."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    # Statements prepared on it call this function.
    connection.create_function("metastore_sha256", -1, link_hash, deterministic=True)
    for migration in migrations.known("sqlite"):
        for statement in migration.statements:
            connection.execute(statement.sql)
    return connection


def parse_table(sql: str) -> Table:
    """Parse a CREATE TABLE."""
    definitions = list(_definitions(sql))
    opening, separator, first_comment = definitions[0].comment.partition("\n\n")
    definitions[0] = definitions[0]._replace(comment=first_comment if separator else "")
    columns, constraints = [], []
    for definition in definitions:
        match = _CONSTRAINT.fullmatch(definition.text)
        if match:
            constraints.append(Definition(match["name"] or "", match["text"], definition.comment))
        else:
            name, _, text = definition.text.partition(" ")
            columns.append(Definition(name, text, definition.comment))
    return Table(_one_line(opening), columns, constraints)


def _definitions(sql: str) -> Iterator[Definition]:
    """Yield the definitions of a CREATE TABLE, each with the comment above it."""
    depth = 0
    text = comment = ""
    for match in _PIECE.finditer(sql):
        piece = match[0]
        depth += (piece == "(") - (piece == ")")
        if piece == "(" and depth == 1:
            text = comment = ""
        elif depth == 0 and piece == ")":
            yield _definition(text, comment)
            return
        elif depth == 1 and piece == ",":
            yield _definition(text, comment)
            text = comment = ""
        elif match["comment"]:
            comment += piece.removeprefix("--").removeprefix(" ") + "\n"
        elif match["blank"] and comment:
            comment += "\n"
        else:
            text += piece


def _definition(text: str, comment: str) -> Definition:
    return Definition("", _tidy(text), comment.strip("\n"))


def _tidy(sql: str) -> str:
    """Return SQL on one line, without comments and without spaces inside parentheses."""
    line = _one_line("".join(it[0] for it in _PIECE.finditer(sql) if not it["comment"]))
    return line.replace("( ", "(").replace(" )", ")")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def render(connection: sqlite3.Connection) -> str:
    """Return the page for the schema of a database."""
    everything = _objects(connection)
    tables = [it for it in everything if it.type == "table"]
    views = [it for it in everything if it.type == "view"]
    reasons = _reasons()
    parts = [_HEADER, _contents(tables, views), _diagram(connection, tables), "## Tables\n"]
    for table in tables:
        belonging = [it for it in everything if it.table == table.name]
        parts.append(_table(connection, table, belonging, reasons))
    parts += ["## Views\n", *(_view(connection, view) for view in views)]
    parts += ["## Migrations\n", _migrations()]
    return "\n".join(parts)


def _objects(connection: sqlite3.Connection) -> list[SchemaObject]:
    """Return the objects of the schema, in the order of their creation."""
    found = SqliteSchemaConnection(connection).objects(())
    rows = connection.execute("SELECT type, name FROM sqlite_schema ORDER BY rowid").fetchall()
    return [found[row] for row in rows if row in found]


def _reasons() -> dict[str, str]:
    """Return the comments above the CREATEs of the migrations, by object."""
    reasons = {}
    for migration in migrations.known("sqlite"):
        lines = migration.sql.splitlines()
        for statement in migration.statements:
            created = re.match(r"CREATE [A-Z ]+ EXISTS (\w+)", statement.sql)
            if created:
                reasons[created[1]] = _comment_above(lines, statement.line)
    return reasons


def _comment_above(lines: list[str], line: int) -> str:
    """Return the comment that ends just above a line, counted from 1."""
    begin = line - 1
    while begin > 0 and lines[begin - 1].startswith("--"):
        begin -= 1
    return _one_line(_COMMENT.sub("", "\n".join(lines[begin : line - 1])))


def _contents(tables: Iterable[SchemaObject], views: Iterable[SchemaObject]) -> str:
    lines = ["| table | what it holds |", "|---|---|"]
    lines += [f"| [{it.name}](#{it.name}) | {parse_table(it.sql).comment} |" for it in tables]
    lines += ["", "| view | what it shows |", "|---|---|"]
    lines += [f"| [{it.name}](#{it.name}) | {_view_comment(it.sql)} |" for it in views]
    return "\n".join(lines) + "\n"


def _diagram(connection: sqlite3.Connection, tables: Iterable[SchemaObject]) -> str:
    lines = ["## Diagram", "", "```mermaid", "erDiagram"]
    for table in tables:
        lines += _relations(connection, table.name)
    for table in tables:
        lines.append(f"    {table.name} {{")
        lines += [
            f"        {column.type} {column.name}{_markers(connection, table.name, column)}"
            for column in _columns(connection, table.name)
        ]
        lines.append("    }")
    return "\n".join([*lines, "```", ""])


def _relations(connection: sqlite3.Connection, table: str) -> Iterator[str]:
    nullable = {column.name for column in _columns(connection, table) if column.nullable}
    unique = _unique_columns(connection, table)
    for key in _foreign_keys(connection, table):
        parent = "|o" if key.column in nullable else "||"
        child = "o|" if key.column in unique else "o{"
        yield f'    {key.parent} {parent}--{child} {table} : "{key.column}"'


def _markers(connection: sqlite3.Connection, table: str, column: Column) -> str:
    markers = []
    if column.in_primary_key:
        markers.append("PK")
    if column.name in {key.column for key in _foreign_keys(connection, table)}:
        markers.append("FK")
    if column.name in _unique_columns(connection, table) and not column.in_primary_key:
        markers.append("UK")
    return " " + ", ".join(markers) if markers else ""


def _table(
    connection: sqlite3.Connection,
    table: SchemaObject,
    belonging: Iterable[SchemaObject],
    reasons: Mapping[str, str],
) -> str:
    text = parse_table(table.sql)
    sections = {
        "": _column_rows(connection, table.name, text),
        "Keys": _keys(connection, table.name),
        "Foreign keys": [_foreign_key(key) for key in _foreign_keys(connection, table.name)],
        "Checks": [_check(it) for it in text.constraints if it.text.startswith("CHECK")],
        "Indexes": [_created(it, reasons) for it in belonging if it.type == "index"],
        "Triggers": [_created(it, reasons) for it in belonging if it.type == "trigger"],
    }
    parts = [f"### {table.name}\n", f"{text.comment}\n"]
    for title, lines in sections.items():
        if lines:
            parts += [f"{title}:\n"] if title else []
            parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _column_rows(connection: sqlite3.Connection, table: str, text: Table) -> list[str]:
    comments = {column.name: _one_line(column.comment) for column in text.columns}
    rows = ["| column | type | null | default | what it holds |", "|---|---|---|---|---|"]
    for column in _columns(connection, table):
        cells = (
            f"`{column.name}`",
            column.type,
            "yes" if column.nullable else "",
            f"`{column.default}`" if column.default is not None else "",
            comments[column.name],
        )
        rows.append("".join(f"| {cell} ".replace("  ", " ") for cell in cells) + "|")
    return rows


def _keys(connection: sqlite3.Connection, table: str) -> list[str]:
    primary = [column.name for column in _columns(connection, table) if column.in_primary_key]
    unique = sorted(_unique_keys(connection, table) - {tuple(primary)})
    return [
        f"- primary key: `{', '.join(primary)}`",
        *(f"- unique: `{', '.join(columns)}`" for columns in unique),
    ]


def _foreign_key(key: ForeignKey) -> str:
    on_update = f", on update {key.on_update}" if key.on_update != "NO ACTION" else ""
    return (
        f"- `{key.column}` → [`{key.parent}.{key.parent_column}`](#{key.parent}), "
        f"on delete {key.on_delete}{on_update}"
    )


def _check(constraint: Definition) -> str:
    return _item(constraint.name, constraint.text, _one_line(constraint.comment))


def _created(it: SchemaObject, reasons: Mapping[str, str]) -> str:
    """Return the definition of an index or trigger, and the comment above it."""
    unique = "UNIQUE " if re.match(r"CREATE\s+UNIQUE", it.sql) else ""
    _, _, text = _tidy(it.sql).partition(f" {it.name} ")
    return _item(it.name, unique + text, reasons.get(it.name, ""))


def _item(name: str, text: str, reason: str) -> str:
    return f"- `{name}`: `{text}`" + (f"\n  {reason}" if reason else "")


def _view(connection: sqlite3.Connection, view: SchemaObject) -> str:
    columns = ", ".join(f"`{column.name}`" for column in _columns(connection, view.name))
    sql = _VIEW_COMMENT.sub("", view.sql, count=1)
    return (
        f"### {view.name}\n\n{_view_comment(view.sql)}\n\nColumns: {columns}.\n\n"
        f"```sql\n{sql};\n```\n"
    )


def _migrations() -> str:
    """Return a table of all migrations, from the headers of their files."""
    lines = ["| migration | what it adds or changes | rollback |", "|---|---|---|"]
    for migration in migrations.known("sqlite"):
        title, _, _ = migration.sql.partition("\n--\n")
        purpose = _one_line(_COMMENT.sub("", title)).removeprefix(f"{migration.id}: ")
        lines.append(f"| `{migration.id}` | {purpose} | {migration.loses} |")
    return "\n".join(lines) + "\n"


def _view_comment(sql: str) -> str:
    return _one_line(_COMMENT.sub("", "".join(_VIEW_COMMENT.findall(sql)[:1])))


def _columns(connection: sqlite3.Connection, table: str) -> list[Column]:
    rows = connection.execute(f"PRAGMA table_info({table})").fetchall()
    return [
        Column(name, type_, not (not_null or key), default, bool(key))
        for _, name, type_, not_null, default, key in rows
    ]


def _foreign_keys(connection: sqlite3.Connection, table: str) -> list[ForeignKey]:
    rows = connection.execute(f"PRAGMA foreign_key_list({table})").fetchall()
    return sorted(
        ForeignKey(column, parent, parent_column, on_update, on_delete)
        for _, _, parent, column, parent_column, on_update, on_delete, _ in rows
    )


def _unique_columns(connection: sqlite3.Connection, table: str) -> set[str]:
    return {columns[0] for columns in _unique_keys(connection, table) if len(columns) == 1}


def _unique_keys(connection: sqlite3.Connection, table: str) -> set[tuple[str, ...]]:
    """Return the unique keys that cover every row, as tuples of columns."""
    rows = connection.execute(f"PRAGMA index_list({table})").fetchall()
    return {
        tuple(name for _, _, name in connection.execute(f"PRAGMA index_info({index})"))
        for _, index, unique, _, partial in rows
        if unique and not partial
    }

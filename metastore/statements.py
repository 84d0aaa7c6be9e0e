"""The statements of `sql/`, read with aiosql's loader.

One file per table holds every statement the program runs on it. The operator behind a
statement's name says how it is used:

| operator | meaning | no row |
|---|---|---|
| `^` | reads one row | ends a multi-statement operation |
| `$` | reads one value | is None |
| none | reads many rows | is an empty list |
| `<!` | writes and returns rows | ends and undoes a multi-statement operation |
| `!` | writes | is no answer |
| `*!` | writes many rows | is no answer |

A statement that reads a lot says so: a comment line `-- Scans: <why>` above it lets the backend
run it where short reads do not wait for it.

An INSERT marked `<!` without RETURNING returns the number that SQLite gave the row.

`SELECT *` and `RETURNING *` stand for the columns of the table's row type, in its order, and are
spelled out before a statement reaches the database: a column that a later migration adds never
shifts the rows of the code that runs today. `metastore sql` prints what is sent.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec
from aiosql.query_loader import QueryLoader
from aiosql.types import QueryDatum, SQLOperationType
from aiosql.utils import VAR_REF

from metastore import codec, resources
from metastore.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from metastore.backends.base import Columns

__all__ = ["Call", "Catalogue", "Statement", "may_be_none", "read_statements"]

_READS = {
    SQLOperationType.SELECT,
    SQLOperationType.SELECT_ONE,
    SQLOperationType.SELECT_VALUE,
}
_SCANS = re.compile(r"^Scans: \S", re.MULTILINE)
_LEFT_AS_IT_IS = re.compile(r"\bcoalesce\(:(\w+),", re.IGNORECASE)
# Strings and comments come first, so that a star within one is left alone.
_STAR = re.compile(
    r"'(?:[^']|'')*'|--[^\n]*"
    r"|(?P<verb>\b(?:SELECT|RETURNING)) +(?P<alias>\w+\.)?\*(?=\s|$)",
    re.IGNORECASE,
)
_EXPECTS_A_ROW = {SQLOperationType.SELECT_ONE, SQLOperationType.INSERT_RETURNING}


class Statement:
    """A named statement. Calling it with its parameters gives a `Call` that a backend runs."""

    __slots__ = (
        "_encoders",
        "doc",
        "expects_row",
        "name",
        "parameters",
        "places",
        "returns_row_number",
        "scans",
        "sql",
        "table",
        "writes",
    )

    def __init__(
        self, table: str, datum: QueryDatum, row_type: type[codec.Row], columns: Columns
    ) -> None:
        self.table = table
        self.name = datum.query_name
        self.doc = datum.doc_comments
        self.writes = datum.operation_type not in _READS
        self.scans = not self.writes and _SCANS.search(self.doc) is not None
        self.expects_row = datum.operation_type in _EXPECTS_A_ROW
        self.returns_row_number = (
            datum.operation_type is SQLOperationType.INSERT_RETURNING
            and re.search(r"\bRETURNING\b", datum.sql) is None
        )
        self.parameters = tuple(datum.parameters or ())
        self.sql, self.places = _placed(datum.sql, self.parameters)
        self._encoders = tuple(
            codec.parameter_encoders(
                row_type, self.parameters, columns, may_be_none(datum.sql)
            ).items()
        )

    def __repr__(self) -> str:
        return f"<Statement {self.table}.{self.name}>"

    def __call__(self, **values: Any) -> Call:
        """Bind `values`, one for each declared parameter.

        Raises:
            InvalidValue: a column does not take its value.
        """
        try:
            return Call(self, tuple([encode(values[name]) for name, encode in self._encoders]))
        except codec.RefusedError:
            self._refuse(values)
            raise

    def many(self, rows: list[dict[str, Any]]) -> Call:
        """Bind one set of values for each row to write.

        Raises:
            InvalidValue: a column does not take its value.
        """
        columns = [_encoded(encode, [row[name] for row in rows]) for name, encode in self._encoders]
        try:
            return Call(self, list(zip(*columns, strict=True)))
        except codec.RefusedError:
            for row in rows:
                self._refuse(row)
            raise

    def _refuse(self, values: dict[str, Any]) -> None:
        """Raise the error that names the first of `values` that is refused, if one is."""
        for name, encode in self._encoders:
            try:
                encode(values[name])
            except codec.RefusedError as refused:
                raise InvalidValue(
                    self.table, name, str(refused), value_type=type(values[name]).__name__
                ) from None


def may_be_none(sql: str) -> set[str]:
    """Return the parameters that may be None, although their column may never be NULL.

    In `coalesce(:max_items, max_items)`, None leaves the column as it is.
    """
    return set(_LEFT_AS_IT_IS.findall(sql))


NUMBERED = not (3, 12) <= sys.version_info < (3, 12, 4)
"""Whether parameters are numbered. CPython 3.12.0 to 3.12.3 take `?1` for a name, and warn of each
that is bound from a sequence: gh-101693."""


def _placed(sql: str, parameters: tuple[str, ...]) -> tuple[str, tuple[int, ...] | None]:
    """Replace names by places, which bind faster.

    Returns:
        The statement, and which parameter belongs in which place; None if they are numbered.
    """
    places: list[int] = []

    def place(found: re.Match[str]) -> str:
        name = found["var_name"]
        if not name:
            return found[0]
        places.append(parameters.index(name))
        return f"{found['lead']}?{places[-1] + 1 if NUMBERED else ''}"

    placed = VAR_REF.sub(place, sql)
    return placed, None if NUMBERED else tuple(places)


def _encoded(encode: codec.Encoder, values: list[Any]) -> Iterator[Any]:
    """Encode a column of values; one that is the same object as the last is encoded once."""
    last: Any = _NOTHING
    encoded: Any = None
    for value in values:
        if value is not last:
            encoded = encode(value)
            last = value
        yield encoded


_NOTHING = object()


class Call(msgspec.Struct, frozen=True):
    """A statement and its column values; a list of them for a statement that writes many rows."""

    statement: Statement
    parameters: tuple[Any, ...] | list[tuple[Any, ...]]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The column values of each row, by parameter."""
        rows = self.parameters if isinstance(self.parameters, list) else [self.parameters]
        return [dict(zip(self.statement.parameters, row, strict=True)) for row in rows]

    @property
    def bound(self) -> tuple[Any, ...] | list[tuple[Any, ...]]:
        """The column values as the driver binds them."""
        places = self.statement.places
        if places is None:
            return self.parameters
        if isinstance(self.parameters, list):
            return [tuple([row[it] for it in places]) for row in self.parameters]
        return tuple([self.parameters[it] for it in places])

    def __repr__(self) -> str:
        # Parameters may be secrets, and drivers log what they are handed.
        return f"<Call of {self.statement.table}.{self.statement.name}>"


class Catalogue:
    """The statements of one table, as attributes, in the dialect of a backend."""

    def __init__(self, table: str, row_type: type[codec.Row], columns: Columns) -> None:
        for name, datum in read_statements(table, row_type, columns.dialect).items():
            setattr(self, name, Statement(table, datum, row_type, columns))

    def __getattr__(self, name: str) -> Statement:
        raise AttributeError(f"no statement is named {name}")


@cache
def read_statements(table: str, row_type: type[codec.Row], dialect: str) -> dict[str, QueryDatum]:
    """Return the statements of `table` by name: the common ones, then the dialect's own over them.

    A star stands for the columns of `row_type`.

    Raises:
        aiosql.utils.SQLParseException: a statement's header and body do not agree.
        FileNotFoundError: the table has no statement file.
    """
    directory = resources.statements_directory()
    statements = _read(directory / f"{table}.sql")
    overlay = directory / f"{table}.{dialect}.sql"
    if overlay.exists():
        statements |= _read(overlay)
    columns = row_type.__struct_fields__
    return {
        name: datum._replace(sql=_spelled_out(datum.sql, columns))
        for name, datum in statements.items()
    }


def _spelled_out(sql: str, columns: tuple[str, ...]) -> str:
    """Replace each star with `columns`, laid out as a person would write them."""

    def spell_out(found: re.Match[str]) -> str:
        if not found["verb"]:
            return found[0]
        line = sql[sql.rfind("\n", 0, found.start()) + 1 : found.start()]
        indent = line[: len(line) - len(line.lstrip())]
        listed = f",\n{indent}    ".join(f"{found['alias'] or ''}{column}" for column in columns)
        return f"{found['verb']}\n{indent}    {listed}"

    return _STAR.sub(spell_out, sql)


def _read(path: Path) -> dict[str, QueryDatum]:
    # The loader wants a driver only to translate `:name`, which SQLite takes as it is.
    loader = QueryLoader(
        _Verbatim(),  # type: ignore[arg-type]
        record_classes=None,
        attribute=None,
    )
    data = loader.load_query_data_from_file(path, encoding="utf-8")
    return {datum.query_name: datum for datum in data}


class _Verbatim:
    """The part of aiosql's driver adapter that its loader calls."""

    @staticmethod
    def process_sql(_name: str, _operation: SQLOperationType, sql: str) -> str:
        return sql.rstrip(";")

"""The types of the statements: what a type checker knows about `sql/`.

Each table gets a class with a method for each statement, so that mypy reports a misspelt
statement, and a parameter that is misspelt, missing or of the wrong type. It is a stub: at run
time a repository has a `metastore.statements.Catalogue`.
"""

from __future__ import annotations

import types
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

from aiosql.types import SQLOperationType

from metastore import resources
from metastore.repositories import repository_types
from metastore.statements import may_be_none, read_statements

if TYPE_CHECKING:
    import sqlite3

    from aiosql.types import QueryDatum

    from metastore.codec import Row
    from metastore.repositories.base import TableRepository

__all__ = ["class_name", "render"]

_HEADER = """\
# Written by `python -m docs.generate` from sql/ and the row types.
# ruff: noqa
# fmt: off

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol, TypedDict, TypeVar

from metastore.statements import Call

_Row_contra = TypeVar("_Row_contra", contravariant=True)

class Many(Protocol[_Row_contra]):
    def many(self, rows: Sequence[_Row_contra]) -> Call: ...
"""

_PARAMETERS = {
    "now": "datetime",
    "horizon": "datetime",
    "ticket_horizon": "datetime",
    "limit": "int",
    "after_id": "str | None",
}
"""The types of parameters that are not named after a column. All others are `Any`."""


def class_name(table: str) -> str:
    """Return the name of the class with the statements of `table`."""
    return f"{_camel_case(table)}Statements"


def render(_: sqlite3.Connection) -> str:
    """Return the stub."""
    repositories = sorted(repository_types(), key=lambda it: it.table)
    return _HEADER + "".join(map(_class, repositories))


def _class(repository: type[TableRepository[Any]]) -> str:
    types_of = _Types(repository.row_type)
    rows = ""
    body = ""
    for name, datum in _statements(repository).items():
        parameters = types_of.parameters(datum)
        if datum.operation_type is SQLOperationType.INSERT_UPDATE_DELETE_MANY:
            row = f"{_camel_case(name)}Row"
            fields = "".join(f"    {parameter}\n" for parameter in parameters)
            rows += f"\nclass {row}(TypedDict):\n{fields}"
            body += f"    {name}: Many[{row}]\n"
        else:
            listed = f", *, {', '.join(parameters)}" if parameters else ""
            body += f"    def {name}(self{listed}) -> Call: ...\n"
    return f"{rows}\nclass {class_name(repository.table)}:\n{body}"


def _statements(repository: type[TableRepository[Any]]) -> dict[str, QueryDatum]:
    """Return the statements of a table, which every dialect declares with the same parameters.

    Raises:
        TypeError: they don't.
    """
    row_type: type[Row] = repository.row_type
    statements: dict[str, QueryDatum] = {}
    for dialect in resources.dialects():
        for name, datum in read_statements(repository.table, row_type, dialect).items():
            known = statements.setdefault(name, datum)
            if set(known.parameters or ()) != set(datum.parameters or ()):
                raise TypeError(f"{repository.table}.{name}: {dialect} has other parameters")
    return statements


class _Types:
    """The types of the parameters of one table's statements."""

    def __init__(self, row_type: type[Row]) -> None:
        hints = get_type_hints(row_type, include_extras=True)
        self._columns = {name: hints[name] for name in row_type.__struct_fields__}

    def parameters(self, datum: QueryDatum) -> list[str]:
        nullable = may_be_none(datum.sql)
        return [
            f"{name}: {self._of(name, nullable=name in nullable)}"
            for name in datum.parameters or ()
        ]

    def _of(self, name: str, *, nullable: bool) -> str:
        if name not in self._columns:
            return _PARAMETERS.get(name, "Any")
        text = self._text(self._columns[name])
        return f"{text} | None" if nullable and not text.endswith("None") else text

    def _text(self, hint: Any) -> str:
        origin = get_origin(hint)
        if hint is types.NoneType:
            return "None"
        if origin is Annotated:
            return self._text(get_args(hint)[0])
        if origin in (Union, types.UnionType):
            return " | ".join(map(self._text, get_args(hint)))
        if hint is Any:
            return "Any"
        if origin is not None:
            # JSON keys and items, and the numbers of a vector, are checked when bound.
            return (
                "Sequence[float]" if origin is tuple else f"{origin.__name__}[{self._items(hint)}]"
            )
        # An enumeration member may be given as text, which is checked when bound.
        return "str" if issubclass(hint, StrEnum) else str(hint.__name__)

    def _items(self, hint: Any) -> str:
        return "str, Any" if get_origin(hint) is dict else "Any"


def _camel_case(name: str) -> str:
    return "".join(map(str.capitalize, name.split("_")))

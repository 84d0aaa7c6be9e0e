"""Compares two SQLite schemas, object by object."""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING

from metastore.audit.links import encode
from metastore.backends.base import Difference, SchemaObject

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from metastore.backends.base import Objects

__all__ = ["compare", "fingerprint", "objects"]

# Strings and quoted names first: they may contain what looks like a comment.
_TOKEN = re.compile(
    r"""
      (?P<string>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^]]*])
    | (?P<comment>--[^\n]*|/\*.*?(?:\*/|$))
    | (?P<space>\s+)
    | (?P<word>\w+)
    | (?P<operator>\|\||<<|>>|<=|>=|<>|==|!=|->>|->|.)
    """,
    re.VERBOSE | re.DOTALL,
)


def objects(
    rows: Iterable[Sequence[str]], ignore_tables: Collection[str]
) -> dict[tuple[str, str], SchemaObject]:
    """Return the objects in the rows of a schema, by type and name.

    SQLite's own tables, the implicit indexes of constraints, and everything that belongs to
    `ignore_tables` are left out. Triggers and views are never SQLite's own, whatever name an
    attacker who can write to the schema gave them.
    """
    found = (SchemaObject(*row) for row in rows)
    return {
        (it.type, it.name): it
        for it in sorted(found)
        if it.type in ("trigger", "view")
        or not (it.name.startswith("sqlite_") or it.table in ignore_tables)
    }


def fingerprint(found: Objects) -> str:
    """Return a hash of a schema, equal for two schemas that `compare` finds equal."""
    digest = sha256()
    for it in found.values():
        digest.update(encode(it.type, it.name, it.table, _normal(it.sql)))
    return digest.hexdigest()


def compare(live: Objects, expected: Objects) -> list[Difference]:
    """Return the differences between a live schema and the expected one.

    Comments, white space, the case of names and their quotes are ignored. Tables are compared
    definition by definition, so that a changed CHECK is reported as such.
    """
    differences = []
    for key in sorted(live.keys() | expected.keys()):
        type_, name = key
        if key not in live:
            differences.append(Difference("missing", type_, name, _of_table(expected[key])))
        elif key not in expected:
            differences.append(Difference("extra", type_, name, _of_table(live[key])))
        elif type_ == "table":
            differences += _compare_tables(live[key], expected[key])
        elif _normal(live[key].sql) != _normal(expected[key].sql):
            detail = f"is {_normal(live[key].sql)}, must be {_normal(expected[key].sql)}"
            differences.append(Difference("different", type_, name, detail))
    return differences


def _of_table(it: SchemaObject) -> str:
    return f"on {it.table}" if it.type in ("index", "trigger") else ""


def _compare_tables(live: SchemaObject, expected: SchemaObject) -> Iterator[Difference]:
    if live.sql == expected.sql:
        return
    has, must = _definitions(live.sql), _definitions(expected.sql)
    if has == must:
        return
    parts = [f"lacks {definition}" for definition in must if definition not in has]
    parts += [f"has {definition}" for definition in has if definition not in must]
    detail = "; ".join(parts) or "its columns are in another order"
    yield Difference("different", "table", live.name, detail)


def _definitions(sql: str) -> list[str]:
    """Return the columns and constraints of a CREATE TABLE, and its options."""
    definitions: list[list[str]] = [[]]
    depth = 0
    for token in _tokens(sql):
        depth += (token == "(") - (token == ")")  # noqa: S105 - a bracket, not a secret
        opens = token == "(" and depth == 1  # noqa: S105
        closes = token == ")" and depth == 0  # noqa: S105
        if opens or closes or (token == "," and depth == 1):  # noqa: S105
            definitions.append([])
        else:
            definitions[-1].append(token)
    # The first part is CREATE TABLE and the name, which the caller has compared.
    return [" ".join(definition) for definition in definitions[1:] if definition]


@lru_cache(maxsize=1024)
def _normal(sql: str) -> str:
    # Every checkpoint and verification normalises the same few hundred texts.
    return " ".join(_tokens(sql))


def _tokens(sql: str) -> Iterator[str]:
    for match in _TOKEN.finditer(sql):
        kind, text = match.lastgroup, match[0]
        if kind == "word":
            yield text.lower()
        elif kind == "quoted":
            name = text[1:-1]
            yield name.lower() if re.fullmatch(r"\w+", name) else text
        elif kind not in ("space", "comment"):
            yield text

"""What the pages and messages name: files, tests, commands, statements and the testing kit."""

from __future__ import annotations

import ast
import re
import shlex
import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import pytest

import metastore.testing
from docs.schema_page import migrated
from metastore import migrations
from metastore.cli import main
from metastore.repositories import repository_types
from metastore.statements import read_statements
from metastore.testing import FaultKind, plugin
from metastore.testing.factories import Factories
from metastore.testing.faults import Faults

if TYPE_CHECKING:
    from collections.abc import Iterator

    from metastore.codec import Row

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md")])
MODULES = sorted((ROOT / "metastore").rglob("*.py"))

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_SHELL = re.compile(r"^```(?:console|sh|bash)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_QUOTED = re.compile(r"`([^`\n]+)`")
_PLACEHOLDER = re.compile(r"<\w+>|NNNN-[\w-]+|\*")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def quoted(text: str) -> list[str]:
    """Return what stands in backticks outside of blocks."""
    return _QUOTED.findall(_FENCED.sub("", text))


# Files and tests


def paths_named(text: str) -> Iterator[str]:
    for name in quoted(text):
        is_path = re.fullmatch(r"[\w.<>*-]+(/[\w.<>*-]+)*(/|/[\w<>*.-]+\.\w+)", name)
        if is_path or re.fullmatch(r"test_\w+\.py", name):
            yield name


def exists(name: str) -> bool:
    pattern = _PLACEHOLDER.sub("*", name)
    return any(ROOT.glob(pattern if "/" in name else f"tests/**/{pattern}"))


@each_page
def test_page__names_files_that_exist(page: Path) -> None:
    assert [name for name in paths_named(text_of(page)) if not exists(name)] == []


@each_page
def test_page__names_tests_that_exist(page: Path) -> None:
    named = {it for it in quoted(text_of(page)) if re.fullmatch(r"test_\w+__\w+", it)}
    assert named <= known_tests()


@cache
def known_tests() -> set[str]:
    return {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", text_of(path), re.MULTILINE)
    }


def test_paths_named__sees_each_form() -> None:
    text = "`a/b.py`, `sql/<table>.sql`, `tests/servers/`, `test_fork.py`, `/`, `a | b`, `x.y`"
    assert list(paths_named(text)) == [
        "a/b.py",
        "sql/<table>.sql",
        "tests/servers/",
        "test_fork.py",
    ]
    assert [exists(it) for it in paths_named(text)] == [False, True, True, True]


# Commands


class Quoted(NamedTuple):
    """A command line that is quoted somewhere."""

    place: str
    line: str


HASHED = {"checkpoint 1", "signature 1"}
"""What follows "metastore" in the first field of what is hashed: no commands."""


def commands_on_page(page: Path) -> Iterator[Quoted]:
    text = text_of(page)
    for block in re.findall(
        r"^```(?:console|sh|bash)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    ):
        for line in block.splitlines():
            found = re.match(r"(?:\$ )?(?:python -m )?metastore ([a-z].*)", line)
            if found and not line.startswith("metastore:"):
                yield Quoted(page.name, found[1].partition("  #")[0])
    for line in quoted(text):
        found = re.match(r"(?:python -m )?metastore ([a-z].*)", line)
        if found and found[1] not in HASHED:
            yield Quoted(page.name, found[1])


def commands_in_module(module: Path) -> Iterator[Quoted]:
    """Yield the commands that a module's comments, docstrings and messages quote.

    A message quotes a command in backticks, or ends with it: "run: metastore sql".
    """
    source = text_of(module)
    place = module.relative_to(ROOT).as_posix()
    for line in re.findall(r"`metastore ([a-z][^`\n]*)`", source):
        yield Quoted(place, line)
    for text in strings_of(module):
        for line in re.findall(r"(?<=run: )metastore ([a-z].*)|(?<=run )metastore ([a-z].*)", text):
            yield Quoted(place, "".join(line))


@cache
def strings_of(module: Path) -> list[str]:
    return list(strings(ast.parse(text_of(module))))


def strings(tree: ast.AST) -> Iterator[str]:
    """Yield the texts of a module but for its docstrings, with X for what is filled in."""
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    pieces = {
        id(piece)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for piece in node.values
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(it.value) if isinstance(it, ast.Constant) else "X" for it in node.values
            )
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings | pieces
        ):
            yield node.value


def refusal(line: str) -> str | None:
    """Return why the command line does not parse; None if it does."""
    words = shlex.split(re.sub(r"[{\[<][^}\]>]*[}\]>]|…", "X", line.rstrip(".;")))
    command: click.Command = main
    context = click.Context(main, info_name="metastore")
    try:
        while isinstance(command, click.Group) and words:
            [name, found, words] = command.resolve_command(context, words)
            assert found is not None
            context = click.Context(found, context, info_name=name, **found.context_settings)
            command = found
        _, extra, _ = command.make_parser(context).parse_args(list(words))
    except click.UsageError as error:
        return error.format_message()
    return f"has no argument {extra}" if extra else None


COMMANDS = sorted(
    {
        *(it for page in PAGES for it in commands_on_page(page)),
        *(it for module in MODULES for it in commands_in_module(module)),
    }
)


def test_commands__are_found_in_pages_and_in_code() -> None:
    places = {it.place for it in COMMANDS}
    assert {"README.md", "migrations.md", "metastore/errors.py", "metastore/health.py"} <= places
    lines = {it.line for it in COMMANDS}
    assert {"migrate verify", "doctor --integrity", "migrate upgrade --db X"} <= lines


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands__parse(command: Quoted) -> None:
    assert refusal(command.line) is None


@pytest.mark.parametrize("module", MODULES, ids=lambda it: it.relative_to(ROOT).as_posix())
def test_messages__quote_commands_so_that_they_can_be_checked(module: Path) -> None:
    names = "|".join(main.list_commands(click.Context(main)))
    for text in strings_of(module):
        plain = re.sub(r"`[^`]*`|(?<=run: ).*|(?<=run )metastore.*", "", text)
        assert not re.search(rf"\bmetastore (?:{names})\b", plain), text


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("migrate", None),
        ("migrate downgrade -1", None),
        ("migrate upgrade --db {url}", None),
        ("sql [TABLE|STATEMENT]", None),
        ("vacuum", "No such command 'vacuum'."),
        ("migrate forward", "No such command 'forward'."),
        ("doctor --deep", "No such option"),
        ("sql sessions steps", "has no argument ['steps']"),
    ],
)
def test_refusal__says_what_does_not_parse(line: str, reason: str | None) -> None:
    found = refusal(line)
    assert found is None if reason is None else str(found).startswith(reason)


# Statements that a plain shell takes


def names_of_statements() -> Iterator[tuple[str, str]]:
    for repository in repository_types():
        row_type: type[Row] = repository.row_type
        for name, datum in read_statements(repository.table, row_type, "sqlite").items():
            yield name, datum.sql


class Unbound(dict[str, None]):
    """NULL for every parameter, as in the shell."""

    def __missing__(self, name: str) -> None:
        return None


def test_statements__paste_into_sqlite3_but_for_those_that_the_page_names() -> None:
    refused: dict[str, str] = {}
    with closing(sqlite3.connect(":memory:")) as plain, closing(migrated()) as ours:
        for migration in migrations.known("sqlite"):
            plain.executescript(migration.sql)
        for name, sql in names_of_statements():
            ours.execute(f"EXPLAIN {sql}", Unbound())
            try:
                plain.execute(f"EXPLAIN {sql}", Unbound())
            except sqlite3.OperationalError as error:
                refused[name] = str(error)
    assert set(refused.values()) == {"no such function: metastore_sha256"}
    page = text_of(ROOT / "docs/architecture.md")
    [section] = re.findall(r"^### In the shell$(.*?)^#", page, re.MULTILINE | re.DOTALL)
    assert {it for it in quoted(section) if re.fullmatch(r"\w+_\w+", it)} == {
        *refused,
        "metastore_sha256",
    }


# Migrations


def test_migrations_page__names_migrations_that_exist() -> None:
    page = text_of(ROOT / "docs/migrations.md")
    examples = "".join(re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    named = set(re.findall(r"\b\d{4}-[a-z-]+\b", examples))
    assert named <= {it.id for it in migrations.known("sqlite")}
    assert named


# The testing kit


def public(kind: type) -> list[str]:
    return [name for name in vars(kind) if not name.startswith("_")]


KIT = {
    *metastore.testing.__all__,
    *plugin.__all__,
    *public(Factories),
    *(f"faults.{name}" for name in public(Faults)),
    *FaultKind,
    "write_template",
    "--keep-db",
}


@pytest.mark.parametrize("name", sorted(KIT))
def test_testing_page__names_all_of_the_kit(name: str) -> None:
    pattern = re.compile(rf"(?<![\w-]){re.escape(name)}(?!\w)")
    assert any(map(pattern.search, quoted(text_of(ROOT / "docs/testing.md"))))

"""The documentation: what it shows runs, what it links to exists, what is generated is current."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from click.testing import CliRunner

from docs import generate, schema_page
from metastore.backends.sqlite.schema import SqliteSchemaConnection

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
RUNNABLE_PAGES = [
    "README.md",
    "docs/leases.md",
    "docs/budgets.md",
    "docs/memory.md",
    "docs/orchestration.md",
]
"""Pages whose Python blocks are run, in their order and in one namespace."""


class Block(NamedTuple):
    """A fenced block of a page, and the line where its code begins."""

    line: int
    code: str


def _python_blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```python(?: run)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(text.count("\n", 0, match.start(1)) + 1, match[1])


@pytest.mark.parametrize("name", RUNNABLE_PAGES)
def test_python_blocks__run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METASTORE_DB_URL", f"sqlite:///{tmp_path}/docs.db")
    blocks = list(_python_blocks(ROOT / name))
    assert blocks
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with asyncio.Runner() as runner:
        for block in blocks:
            _run(runner, name, block, namespace)


def _run(runner: asyncio.Runner, name: str, block: Block, namespace: dict[str, Any]) -> None:
    """Run a block, in the loop if it awaits and as a program of its own if not."""
    # Empty lines in front, so that a traceback names the line of the page.
    source = "\n" * (block.line - 1) + block.code
    code = compile(source, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if code.co_flags & inspect.CO_COROUTINE:
        runner.run(eval(code, namespace))
    else:
        exec(code, namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links__lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


# What is generated.


@pytest.fixture
def empty_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    return tmp_path


def test_generate__finds_the_checkout_current() -> None:
    assert list(generate.stale()) == []


def test_generate__writes_what_its_check_then_accepts(empty_checkout: Path) -> None:
    names = [file.name for file in generate.GENERATED]
    assert CliRunner().invoke(generate.main, ["--check"]).exit_code == 1
    assert not any((empty_checkout / name).exists() for name in names)
    written = CliRunner().invoke(generate.main)
    assert written.output.splitlines() == [f"wrote {name}" for name in names]
    assert CliRunner().invoke(generate.main, ["--check"]).exit_code == 0


def test_generate__check_names_the_stale_file_and_leaves_it(empty_checkout: Path) -> None:
    CliRunner().invoke(generate.main)
    page = empty_checkout / "docs" / "schema.md"
    edited = page.read_text(encoding="utf-8").replace("RESTRICT", "CASCADE")
    page.write_text(edited, encoding="utf-8")
    checked = CliRunner().invoke(generate.main, ["--check"])
    assert checked.exit_code == 1
    assert checked.stderr == "docs/schema.md is stale; run: python -m docs.generate\n"
    assert page.read_text(encoding="utf-8") == edited


def test_schema_page__says_what_each_table_and_view_is_for() -> None:
    page = schema_page.render(connection := schema_page.migrated())
    described = dict(re.findall(r"^\| \[(\w+)\]\(#\1\) \| (.+) \|$", page, re.MULTILINE))
    names = {
        name
        for type_, name in SqliteSchemaConnection(connection).objects(())
        if type_ in ("table", "view")
    }
    connection.close()
    assert described.keys() == names
    assert all(described.values())


def test_parse_table__reads_comments_columns_and_constraints() -> None:
    table = schema_page.parse_table(
        """CREATE TABLE things (
    -- Things, whatever they are: it's a table (of two columns, no more).
    -- Still the table.

    -- The first column.
    id TEXT NOT NULL PRIMARY KEY,
    label TEXT DEFAULT ', -- no comment (',
    UNIQUE (id, label),
    -- Why it is checked.
    CONSTRAINT things_label_check CHECK (
        length(label) > 0
        AND label <> ')'
    )
) STRICT"""
    )
    assert table == schema_page.Table(
        "Things, whatever they are: it's a table (of two columns, no more). Still the table.",
        [
            schema_page.Definition("id", "TEXT NOT NULL PRIMARY KEY", "The first column."),
            schema_page.Definition("label", "TEXT DEFAULT ', -- no comment ('", ""),
        ],
        [
            schema_page.Definition("", "UNIQUE (id, label)", ""),
            schema_page.Definition(
                "things_label_check",
                "CHECK (length(label) > 0 AND label <> ')')",
                "Why it is checked.",
            ),
        ],
    )

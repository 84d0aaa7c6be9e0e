"""The house: which room may import which, and where a database may be named."""

from __future__ import annotations

import ast
import re
import tokenize
from functools import cache
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "metastore"
DRIVERS = {"aiosqlite", "sqlite3", "psycopg", "psycopg_pool", "asyncpg"}
DIALECTS = ("sqlite", "postgres")

AT_HOME = ("backends/", "testing/simulation/")
"""Where a database may be named: in its backend, and in the simulation, which takes the place of
the SQLite backend's threads and connections."""


@cache
def modules() -> dict[str, Path]:
    """Return the files of the package by module."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, *, for_types: bool = False) -> Iterator[str]:
    """Return what a file imports, also inside functions; by default not what only types need."""
    parsed = tree(path)
    typing_only: set[ast.AST] = set()
    for node in ast.walk(parsed):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            typing_only.update(ast.walk(node))
    for node in ast.walk(parsed):
        if node in typing_only and not for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in modules() else node.module


@cache
def arrows() -> dict[str, set[str]]:
    """Return the modules of the package that each of them imports."""
    return {
        module: {it for it in imports(path) if it in modules() and it != module}
        for module, path in modules().items()
    }


def is_at_home(path: Path) -> bool:
    return path.relative_to(PACKAGE).as_posix().startswith(AT_HOME)


STRANGERS = [path for path in modules().values() if not is_at_home(path)]


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_imports__run_in_no_circle() -> None:
    order = [*TopologicalSorter(arrows()).static_order()]
    assert len(order) > 100


@pytest.mark.parametrize("path", STRANGERS, ids=name_of)
def test_stranger__imports_no_driver_and_no_backend(path: Path) -> None:
    for name in imports(path, for_types=True):
        assert name.partition(".")[0] not in DRIVERS, name
        assert not re.match(r"metastore\.backends\.(sqlite|postgres)\b", name), name


@pytest.mark.parametrize("path", STRANGERS, ids=name_of)
def test_stranger__takes_no_dialect_for_granted(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            defaults = chain(node.args.defaults, filter(None, node.args.kw_defaults))
            for default in defaults:
                if isinstance(default, ast.Constant) and isinstance(default.value, str):
                    assert not default.value.startswith(DIALECTS), f"{path}: {node.name}"


@pytest.mark.parametrize("path", STRANGERS, ids=name_of)
def test_stranger__speaks_of_no_databases_files(path: Path) -> None:
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            found = re.search(r"\bWAL\b|\bjournal|\bfile modes?\b|\bPRAGMA\b", token.string)
            assert token.type == tokenize.ENCODING or not found, f"line {token.start[0]}: {found}"


def test_backends__know_no_table_and_nothing_above_them() -> None:
    for module in modules():
        if module.startswith("metastore.backends"):
            above = {it for it in arrows()[module] if not it.startswith("metastore.backends")}
            assert above <= {"metastore.audit.links", "metastore.codec", "metastore.errors"}, module


def drawn() -> tuple[dict[str, str], set[tuple[str, str]]]:
    """Return the room of each module, and the arrows, of the diagram in `docs/architecture.md`."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    [diagram] = re.findall(r"```mermaid\n(.*?)```", page, re.DOTALL)
    rooms = {}
    for room, label in re.findall(r'^ +(\w+)\["(.+?)"\]$', diagram, re.MULTILINE):
        for name in re.findall(r"[\w./]+", label):
            rooms[name.rstrip("/").replace("/", ".")] = room
    return rooms, set(re.findall(r"^ +(\w+) --> (\w+)$", diagram, re.MULTILINE))


def room_of(module: str, rooms: dict[str, str]) -> str:
    """Return the room whose label names the module, or the nearest package around it."""
    name = module.removeprefix("metastore").removeprefix(".") or "metastore"
    while name not in rooms:
        assert "." in name, f"{module} stands in no room of the diagram"
        name = name.rpartition(".")[0]
    return rooms[name]


def reduced(graph: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Return the arrows of a graph without those that follow from others."""

    def reached(start: str) -> set[str]:
        return set().union(*({it} | reached(it) for it in graph[start]))

    return {
        (start, end)
        for start, ends in graph.items()
        for end in ends
        if not any(end in reached(other) for other in ends - {end})
    }


def test_diagram__is_what_the_imports_are() -> None:
    rooms, pictured = drawn()
    graph: dict[str, set[str]] = {room: set() for room in rooms.values()}
    for module, imported in arrows().items():
        room = room_of(module, rooms)
        graph[room] |= {room_of(it, rooms) for it in imported} - {room}
    [*TopologicalSorter(graph).static_order()]
    assert reduced(graph) == pictured


def test_diagram__notices_an_arrow() -> None:
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set[str]()}
    assert reduced(graph) == {("a", "b"), ("b", "c")}


def listed() -> set[str]:
    """Return the modules and packages that the list in `docs/architecture.md` names."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^metastore/\n((?:  .+\n)+)", page, re.MULTILINE)
    names = " ".join(re.findall(r"^  (\S.*?)(?:  |$)", block, re.MULTILINE))
    return set(re.findall(r"\w+(?=/|\.pyi?\b)", names))


def test_list__names_every_module_and_package() -> None:
    top = {path.stem for path in PACKAGE.glob("*.py*")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert listed() == top - {"__init__"}

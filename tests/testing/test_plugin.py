"""The kit as a project uses it: enabled by one line, in a pytest of its own."""

from __future__ import annotations

import io
import re
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from metastore import MetadataStore, migrations, urls
from metastore.testing.template import write_template
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"
ONE_LINE = 'pytest_plugins = ["metastore.testing"]\n'
INI = "[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n"
FAILING = """
async def test_fails(store, factories):
    await factories.repository(name="left behind")
    assert False

async def test_passes(file_store):
    pass

async def test_has_no_database():
    assert False
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> Iterator[pytest.Pytester]:
    """A project that enables the kit."""
    pytester.makeini(f"{INI}asyncio_mode = auto\n")
    pytester.makeconftest(ONE_LINE)
    yield pytester
    for folder in kept_folders(pytester):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def kept_folders(project: pytest.Pytester) -> list[Path]:
    return list(project.path.glob("metastore-kept-*"))


@pytest.fixture
def kept_here(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setattr("tempfile.tempdir", str(project.path))
    return project


def files_of(page: Path) -> dict[str, str]:
    """Return the files that a page shows: blocks that begin with their name."""
    blocks = re.findall(
        r"^```python\n# (\w+\.py)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL
    )
    return dict(blocks)


def test_page__its_files_run_as_they_stand(project: pytest.Pytester) -> None:
    files = files_of(PAGE)
    assert files.keys() == {"conftest.py", "runner.py", "test_runner.py", "test_worker.py"}
    assert files["conftest.py"] == ONE_LINE
    for name, text in files.items():
        project.path.joinpath(name).write_text(text)
    result = project.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=14)
    result.stdout.no_fnmatch_line("*warning*")


def test_page__its_tests_can_fail(project: pytest.Pytester) -> None:
    for name, text in files_of(PAGE).items():
        # A runner that writes without showing its lease.
        project.path.joinpath(name).write_text(
            text.replace("transaction(lease=lease)", "transaction()")
        )
    result = project.runpytest_inprocess("-p", "no:cacheprovider")
    assert "test_run__a_runner_whose_lease_expired_records_nothing" in str(result.stdout)
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_fixtures__work_in_strict_mode_and_behind_an_early_import(
    pytester: pytest.Pytester,
) -> None:
    pytester.makeini(INI)
    pytester.makeconftest(f"from metastore.testing import Clock\n{ONE_LINE}")
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.asyncio
        async def test_stores(store, file_store, store_url, tmp_path, clock):
            assert store_url == f"sqlite:///{tmp_path}/metadata.db"
            assert (tmp_path / "metadata.db").stat().st_mode & 0o777 == 0o600
            for each in (store, file_store):
                made = await each.repositories.create(name="a", remote_url="")
                assert made.created_at == clock.now
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_store__may_be_overridden(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import pytest
        from metastore.testing import Clock

        @pytest.fixture
        def store(file_store):
            return file_store

        async def test_factories(file_store, factories, faults):
            repository = await factories.repository()
            assert (await file_store.repositories.list()).items == [repository]
        """
    )
    project.runpytest_inprocess().assert_outcomes(passed=1)


def test_stores__of_two_tests_share_nothing(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("n", range(3))
        async def test_empty(store, file_store, n):
            for each in (store, file_store):
                assert (await each.repositories.list()).items == []
                await each.repositories.create(name="a", remote_url="")
        """
    )
    project.runpytest_inprocess().assert_outcomes(passed=3)


def test_keep_db__leaves_every_database_and_says_where_with_a_failure(
    kept_here: pytest.Pytester,
) -> None:
    kept_here.makepyfile(test_it=FAILING)
    result = kept_here.runpytest_inprocess("--keep-db")
    result.assert_outcomes(passed=1, failed=2)
    [folder] = kept_folders(kept_here)
    result.stdout.fnmatch_lines([f"metastore keeps the databases in {folder}"])
    [command] = [line for line in result.outlines if line.startswith("sqlite3 ")]
    _, path = shlex.split(command)
    assert Path(path) == folder / "test_it-py-test_fails.db"
    assert {file.name for file in folder.iterdir()} == {
        "test_it-py-test_fails.db",
        "test_it-py-test_passes.db",
    }
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM repositories").fetchall() == [("left behind",)]
    connection.close()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_keep_db__of_workers_is_one_folder(kept_here: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    kept_here.makepyfile(test_it=FAILING)
    kept_here._monkeypatch.setenv("TMPDIR", str(kept_here.path))
    result = kept_here.runpytest_subprocess("--keep-db", "-n2")
    result.assert_outcomes(passed=1, failed=2)
    [folder] = kept_folders(kept_here)
    assert len(list(folder.iterdir())) == 2


def test_keep_db__without_a_database_leaves_nothing(kept_here: pytest.Pytester) -> None:
    kept_here.makepyfile("def test_nothing():\n    pass\n")
    kept_here.runpytest_inprocess("--keep-db").assert_outcomes(passed=1)
    assert kept_folders(kept_here) == []


def test_without_keep_db__nothing_is_left(kept_here: pytest.Pytester) -> None:
    kept_here.makepyfile(test_it=FAILING)
    result = kept_here.runpytest_inprocess()
    result.assert_outcomes(passed=1, failed=2)
    assert list(kept_here.path.glob("metastore-*")) == []
    assert "sqlite3 " not in str(result.stdout)


@pytest.mark.parametrize("module", ["metastore", "metastore.testing"])
def test_import__needs_no_pytest(module: str) -> None:
    program = f"""
import sys
sys.modules["pytest"] = sys.modules["pytest_asyncio"] = None
import {module}
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE)


@pytest.mark.parametrize("where", ["memory", "file"])
async def test_open__a_migrated_store_is_there_without_reading_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    read: list[str] = []
    really_open = io.open

    def note_and_open(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if "r" in mode:
            read.append(str(file))
        return really_open(file, mode, *arguments, **named)

    # What migrates reads the migrations, and takes ten times as long as what copies them.
    write_template(tmp_path / "metadata.db")
    with monkeypatch.context() as patched:
        patched.setattr(io, "open", note_and_open)
        path = "" if where == "memory" else f"/{tmp_path}/metadata.db"
        async with MetadataStore.open(f"sqlite://{path}"):
            assert read == []
        migrations.upgrade(urls.resolve(f"sqlite:///{tmp_path}/another.db"))
    assert len(read) > 1, "this would notice"


def test_write_template__overwrites_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        write_template(path)
    assert path.read_bytes() == b"precious"

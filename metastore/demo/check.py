"""What the demo runs by default: compile a checkout and run a few of its tests.

It is a program of its own, run in the checkout as `python -P check.py`, and needs nothing but the
standard library: the tests run where pytest is installed. A report goes to the folder that
`ARTIFACTS` names.
"""

# ruff: noqa: T201 - its output is what the demo shows

from __future__ import annotations

import importlib.util
import io
import os
import py_compile
import subprocess
import sys
import time
import warnings
from pathlib import Path

COMPILE_SECONDS = 4.0
"""How long it compiles; a large project is compiled in part."""

TEST_SECONDS = 12.0
"""How long the tests may take; without a result if even the smallest are slower."""

QUICK_TESTS = ("tests/test_paging.py", "tests/test_urls.py", "tests/test_codec.py")
"""The tests to run if a project has them: quick, and without external dependencies."""

SLICE = 3
"""How many test modules, the smallest, are run in a project without `QUICK_TESTS`."""

COLLECTED = (0, 1)
"""pytest's exit codes for tests that ran. Others mean that they could not be imported or found."""


def main() -> int:
    """Check the checkout in the working directory; return 0 if it compiles and its tests pass."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Lines are shown as they come, and file names may contain any bytes.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    files = _git("ls-files", "-z").split("\0")[:-1]
    broken = _compile([name for name in files if name.endswith(".py")])
    tested = _test(_slice(files))
    if tested is None:
        _describe(files)
    return 1 if broken or tested else 0


def _compile(names: list[str]) -> int:
    """Compile the modules and return how many of them fail."""
    warnings.simplefilter("ignore")
    broken = compiled = 0
    deadline = time.monotonic() + COMPILE_SECONDS
    for name in names:
        if time.monotonic() > deadline:
            break
        if not Path(name).is_file():
            continue
        try:
            py_compile.compile(name, doraise=True)
        except (py_compile.PyCompileError, OSError) as error:
            broken += 1
            print(f"broken {name}: {str(error).splitlines()[-1]}")
        else:
            compiled += 1
            print(f"compiled {name}")
    print(f"{compiled} of {len(names)} modules compiled, {broken} broken")
    return broken


def _slice(names: list[str]) -> list[str]:
    """Return the tests to run."""
    tests = [name for name in names if _is_test(name) and Path(name).is_file()]
    quick = [name for name in QUICK_TESTS if name in tests]
    return quick or sorted(tests, key=lambda name: Path(name).stat().st_size)[:SLICE]


def _is_test(name: str) -> bool:
    file = name.rpartition("/")[2]
    return file.endswith(".py") and (file.startswith("test_") or file.endswith("_test.py"))


def _test(tests: list[str]) -> bool | None:
    """Run the tests and return whether any failed; None if they cannot run here."""
    if not tests:
        print("no tests at this commit")
        return None
    if importlib.util.find_spec("pytest") is None:
        print("no tests: pytest is not installed")
        return None
    command = [sys.executable, "-m", "pytest", "--quiet", "--color=no", "-p", "no:cacheprovider"]
    # The project's own options may require plugins that are not installed here.
    command += ["--override-ini", "addopts=", "--import-mode=importlib"]
    if folder := os.environ.get("ARTIFACTS"):
        command.append(f"--junitxml={folder}/junit.xml")
    try:
        code = subprocess.run(  # noqa: S603 - the tests of the project that the demo is run on
            [*command, *tests], timeout=TEST_SECONDS, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        print(f"no tests: these take longer than {TEST_SECONDS:.0f} s")
        return None
    if code not in COLLECTED:
        print("no tests: their dependencies are not installed here")
        return None
    return code == 1


def _describe(names: list[str]) -> None:
    """Print git's facts about the commit, so that there is always some output."""
    print(f"{len(names)} files, {_git('rev-list', '--count', 'HEAD').strip()} commits")
    for commit in _git("log", "-5", "--format=%h %as %s").splitlines():
        print(commit)


def _git(*arguments: str) -> str:
    return subprocess.run(  # noqa: S603 - constant arguments
        ["git", *arguments],  # noqa: S607 - whichever git the user has
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        errors="surrogateescape",
    ).stdout


if __name__ == "__main__":
    sys.exit(main())

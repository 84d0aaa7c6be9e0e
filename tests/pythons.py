"""Run the suite on every CPython that is found, each in an environment of its own.

    python -m tests.pythons [argument of pytest]...

Those from 3.11 on count: `python3.11`, `python3.12` and so on, and what pyenv has installed.
The environment of Python 3.12 is `.venv-3.12`, and what its tests print is in it too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
NEWEST = (3, 19)
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"

Version = tuple[int, int]


def version_of(python: str) -> Version | None:
    """Return the version of an interpreter; None if it is no CPython, or does not run."""
    asked = subprocess.run(
        [python, "-c", "import sys; print(sys.implementation.name, *sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.fullmatch(r"cpython (\d+) (\d+)\n", asked.stdout)
    return (int(found[1]), int(found[2])) if found else None


def interpreters() -> dict[Version, str]:
    """Return the CPythons to run on, one for each minor version."""
    minors = range(OLDEST[1], NEWEST[1] + 1)
    on_path = [shutil.which(f"python3.{minor}") for minor in minors]
    of_pyenv = sorted(PYENV.glob("3.*/bin/python"))
    found: dict[Version, str] = {}
    for python in filter(None, (*on_path, *map(str, of_pyenv))):
        version = version_of(python)
        if version is not None and version >= OLDEST:
            found.setdefault(version, python)
    return dict(sorted(found.items()))


def run(version: Version, python: str, arguments: list[str]) -> bool:
    """Run the tests on one Python, and print how that ended in one line."""
    name = ".".join(map(str, version))
    environment = ROOT / f".venv-{name}"
    log = environment / "tests.log"
    own = str(environment / "bin" / "python")
    ready = environment / ".ready"
    if not ready.exists() or ready.stat().st_mtime < (ROOT / "pyproject.toml").stat().st_mtime:
        subprocess.run([python, "-m", "venv", str(environment)], check=True)
        subprocess.run(
            [own, "-m", "pip", "install", "--quiet", "--editable", ".[dev]"], cwd=ROOT, check=True
        )
        ready.touch()
    command = [own, "-m", "pytest", "-q", "--numprocesses", "auto", "--dist", "worksteal"]
    with log.open("w") as output:
        ended = subprocess.run(
            [*command, *arguments], cwd=ROOT, stdout=output, stderr=output, check=False
        )
    lines = log.read_text().splitlines() or ["printed nothing"]
    is_green = ended.returncode == 0
    where = "" if is_green else f"; see {log.relative_to(ROOT)}"
    sys.stdout.write(f"{name:6} {lines[-1].strip('= ')}{where}\n")
    sys.stdout.flush()
    return is_green


def main(arguments: list[str]) -> int:
    """Run on all; return how many failed."""
    found = interpreters()
    return sum(not run(version, python, arguments) for version, python in found.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) > 0)

"""Locates the files outside the package: in an installed wheel, or at the top of a checkout."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["dialects", "example", "migrations_directory", "statements_directory"]

_PACKAGE = Path(__file__).resolve().parent
_PACKAGED = _PACKAGE / "_resources"
# A checkout has no packaged copy, so that the files you edit are the ones that run.
_ROOT = _PACKAGED if _PACKAGED.is_dir() else _PACKAGE.parent


def statements_directory() -> Path:
    """Return the folder of the statement files, `sql/`."""
    return _ROOT / "sql"


def migrations_directory(dialect: str) -> Path:
    """Return the folder of one dialect's migrations, `migrations/<dialect>/`."""
    return _ROOT / "migrations" / dialect


def dialects() -> list[str]:
    """Return the SQL dialects that have migrations."""
    return sorted(it.name for it in (_ROOT / "migrations").iterdir() if it.is_dir())


def example(name: str) -> ModuleType:
    """Import `docs/examples/<name>.py` and return the module."""
    module_name = f"metastore_example_{name}"
    if module_name not in sys.modules:
        path = _ROOT / "docs" / "examples" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"cannot import {path}", name=name, path=str(path))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[module_name] = module
    return sys.modules[module_name]

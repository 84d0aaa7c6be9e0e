"""Where the SQL files are: inside an installed wheel, or at the top of a checkout."""

from __future__ import annotations

from pathlib import Path

__all__ = ["migrations_directory", "statements_directory"]

_PACKAGE = Path(__file__).resolve().parent
_PACKAGED = _PACKAGE / "_resources"
# A checkout has no packaged copy, so that there is one place to edit and it is the one that runs.
_ROOT = _PACKAGED if _PACKAGED.is_dir() else _PACKAGE.parent


def statements_directory() -> Path:
    """Return the folder of the statement files, `sql/`."""
    return _ROOT / "sql"


def migrations_directory(dialect: str) -> Path:
    """Return the folder of one dialect's migrations, `migrations/<dialect>/`."""
    return _ROOT / "migrations" / dialect

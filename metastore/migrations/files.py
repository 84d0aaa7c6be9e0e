"""Migration files: finding, reading, checking and creating them.

A migration is a pair of files, `NNNN-verb-noun.sql` and `NNNN-verb-noun.rollback.sql`, in
yoyo's format. Anything that could leave a database half-migrated is refused when the files are
read, before any database is touched.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import TYPE_CHECKING

import msgspec

from metastore.errors import InvalidValue, MigrationFailed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from metastore.backends.base import Schema, SqlStatement

__all__ = ["Migration", "find", "head", "ids", "known", "new", "read"]

_ID = re.compile(r"\d{4}-[a-z0-9-]+")
_ROLLBACK = ".rollback.sql"
_HEADER_LINE = re.compile(r"\s*(?:--\s*(?:(?P<key>\w+)\s*:)?\s*(?P<value>.*))?")
_FORBIDDEN = dict.fromkeys(
    ("BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE"),
    "each migration runs in one transaction, which the migration layer controls",
)
_CREATES = re.compile(
    r"CREATE\s+(?:UNIQUE\s+|TEMP(?:ORARY)?\s+|VIRTUAL\s+)*(?:TABLE|INDEX|TRIGGER|VIEW)\s+"
    r"(?!IF\s+NOT\s+EXISTS\b)",
    re.IGNORECASE,
)
_DROPS = re.compile(r"DROP\s+(?:TABLE|INDEX|TRIGGER|VIEW)\s+(?!IF\s+EXISTS\b)", re.IGNORECASE)

_TEMPLATE = """\
-- {id}: <what it adds or changes, in half a line>.
--
-- Why:      <the need it serves>
-- Locks:    <what it rewrites or scans while it holds the write lock; none for a new table>
-- Rollback: <what is lost>
--
-- depends: {depends}

"""
_ROLLBACK_TEMPLATE = """\
-- {id}, undone: <what is lost>.

"""


class Migration(msgspec.Struct, frozen=True):
    """A migration, read from its two files.

    Attributes:
        id: the file's name without its suffix, `0003-create-worktrees`.
        path: the file that is applied.
        depends: the id of the migration before it; None for the first.
        loses: what a rollback loses, from the header.
        sql: the text of the file.
        statements: its statements, in order.
        rollback_path: the file that undoes it.
        rollback_sql: the text of that file.
        rollback_statements: its statements, in order.
    """

    id: str
    path: Path
    depends: str | None
    loses: str
    sql: str
    statements: tuple[SqlStatement, ...]
    rollback_path: Path
    rollback_sql: str
    rollback_statements: tuple[SqlStatement, ...]

    @property
    def hash(self) -> str:
        """The key that yoyo gives the migration: SHA-256 of its id, regardless of its content."""
        return hashlib.sha256(self.id.encode()).hexdigest()

    @property
    def checksum(self) -> str:
        """SHA-256 of the migration file's text, independent of line endings."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def rollback_checksum(self) -> str:
        """SHA-256 of the rollback file's text, likewise."""
        return hashlib.sha256(self.rollback_sql.encode()).hexdigest()


def ids(directory: Path) -> list[str]:
    """Return the ids of all migrations, oldest first, from the file names alone."""
    # Runs whenever a store opens, and building a Path for each name would be most of its cost.
    names = os.listdir(directory) if directory.is_dir() else []  # noqa: PTH208 - as above
    return sorted(
        name.removesuffix(".sql")
        for name in names
        if name.endswith(".sql") and not name.endswith(_ROLLBACK)
    )


def head(directory: Path) -> str:
    """Return the id of the newest migration.

    Raises:
        MigrationFailed: there is none.
    """
    try:
        return ids(directory)[-1]
    except IndexError:
        raise MigrationFailed("head", "holds no migration", path=directory) from None


def known(schema: Schema, directory: Path) -> list[Migration]:
    """Read and check all migrations of a dialect, oldest first.

    Raises:
        MigrationFailed: a file is missing, unreadable, out of order, or contains what a
            migration must not.
    """
    _check_names(directory)
    migrations = [read(schema, directory / f"{id_}.sql") for id_ in ids(directory)]
    if not migrations:
        raise MigrationFailed("head", "holds no migration", path=directory)
    _check_chain(migrations)
    return migrations


def read(schema: Schema, path: Path) -> Migration:
    """Read and check one migration and its rollback.

    Raises:
        MigrationFailed: a file is missing or unreadable, or contains what a migration must not.
    """
    id_ = path.name.removesuffix(".sql")
    if not _ID.fullmatch(id_):
        raise MigrationFailed(
            id_, "is not named like 0001-create-things.sql, in lower case", path=path
        )
    rollback_path = path.with_name(id_ + _ROLLBACK)
    sql, header, statements = _read_file(schema, id_, path)
    rollback_sql, _, rollback_statements = _read_file(schema, id_, rollback_path)
    depends = header.get("depends", "").split()
    if len(depends) > 1:
        raise MigrationFailed(id_, "depends on more than one migration", path=path)
    return Migration(
        id=id_,
        path=path,
        depends=depends[0] if depends else None,
        loses=header.get("Rollback", ""),
        sql=sql,
        statements=statements,
        rollback_path=rollback_path,
        rollback_sql=rollback_sql,
        rollback_statements=rollback_statements,
    )


def find(revision: str, among: Sequence[str]) -> str:
    """Return the id that `revision` names: an id, its number, or an unambiguous prefix.

    Raises:
        InvalidValue: it matches no id, or several.
    """
    if revision == "head" and among:
        return among[-1]
    if revision.isdecimal():
        revision = revision.zfill(4)
    elif revision in among:
        return revision
    matches = [id_ for id_ in among if id_.startswith(revision)] if revision else []
    if len(matches) == 1:
        return matches[0]
    found = f"names {', '.join(matches)}" if matches else "names no migration"
    raise InvalidValue(None, f"revision {revision!r}", found)


def new(schema: Schema, name: str, directory: Path) -> tuple[Path, Path]:
    """Create the two files of the next migration, with their headers, and return the paths.

    `name` becomes the id, after the number: `add pool to worktrees` makes
    `0014-add-pool-to-worktrees`.

    Raises:
        InvalidValue: the name has no letters or digits to make an id from.
        MigrationFailed: the existing migrations are not in order, or belong to an installed
            package, which the next installation would overwrite.
    """
    if "_resources" in directory.parts:
        raise MigrationFailed("new", "belongs to an installed package", path=directory)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not slug:
        raise InvalidValue(None, f"name {name!r}", "has no letters or digits to make an id from")
    last = known(schema, directory)[-1].id if ids(directory) else None
    id_ = f"{int(last[:4]) + 1 if last else 1:04}-{slug}"
    path, rollback_path = directory / f"{id_}.sql", directory / f"{id_}{_ROLLBACK}"
    for file, template in ((path, _TEMPLATE), (rollback_path, _ROLLBACK_TEMPLATE)):
        with file.open("x", encoding="utf-8") as stream:
            stream.write(template.format(id=id_, depends=last or ""))
    return path, rollback_path


def _check_names(directory: Path) -> None:
    if not directory.is_dir():
        raise MigrationFailed("head", "is not a folder", path=directory)
    for path in sorted(directory.iterdir()):
        if path.suffix == ".py":
            raise MigrationFailed(path.stem, "is not SQL, which DBAs can review", path=path)
        if path.name.endswith(_ROLLBACK):
            id_ = path.name.removesuffix(_ROLLBACK)
            if not path.with_name(f"{id_}.sql").exists():
                raise MigrationFailed(id_, "rolls back a migration that is not there", path=path)


def _check_chain(migrations: Sequence[Migration]) -> None:
    """Refuse anything but one chain in numerical order: yoyo would apply a tree."""
    before: Migration | None = None
    for migration in migrations:
        if migration.depends != (before.id if before else None):
            says = f"depends on {migration.depends}" if migration.depends else "depends on nothing"
            must = before.id if before else "nothing, as the first one"
            raise MigrationFailed(
                migration.id, f"{says}, but must depend on {must}", path=migration.path
            )
        if before and migration.id[:4] == before.id[:4]:
            raise MigrationFailed(
                migration.id, f"has the number of {before.id}", path=migration.path
            )
        before = migration


def _read_file(
    schema: Schema, id_: str, path: Path
) -> tuple[str, dict[str, str], tuple[SqlStatement, ...]]:
    try:
        # Universal newlines: a checkout on Windows has the same checksums as any other.
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MigrationFailed(id_, "is missing", path=path) from None
    except UnicodeDecodeError as error:
        raise MigrationFailed(id_, f"is not UTF-8: {error.reason}", path=path) from error
    except OSError as error:
        raise MigrationFailed(id_, f"is unreadable: {error.strerror}", path=path) from error
    if "\0" in text:
        raise MigrationFailed(id_, "holds a NUL, where databases stop reading", path=path)
    header = _header(text)
    if header.get("transactional", "true").lower() != "true":
        raise MigrationFailed(
            id_, "must be transactional: a failure would leave half of it behind", path=path
        )
    statements = tuple(schema.split(text))
    if not statements:
        raise MigrationFailed(id_, "holds no statement", path=path)
    for statement in statements:
        _check_statement(schema, id_, path, statement)
    return text, header, statements


def _header(text: str) -> dict[str, str]:
    """Return the `key: value` lines of a file's opening comment."""
    header: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        match = _HEADER_LINE.fullmatch(line)
        if match is None:
            break
        if match["key"] or not match["value"]:
            key = match["key"] or ""
        if key:
            header[key] = f"{header.get(key, '')} {match['value']}".strip()
    return header


def _check_statement(schema: Schema, id_: str, path: Path, statement: SqlStatement) -> None:
    word = re.match(r"\w*", statement.sql)
    verb = word[0].upper() if word else ""
    reason = _FORBIDDEN.get(verb) or schema.forbidden.get(verb)
    if verb == "CREATE" and _CREATES.match(statement.sql):
        reason = "must say IF NOT EXISTS"
    elif verb == "DROP" and _DROPS.match(statement.sql):
        reason = "must say IF EXISTS"
    if reason:
        raise MigrationFailed(
            id_, f"{verb}: {reason}", path=path, line=statement.line, statement=statement.sql
        )

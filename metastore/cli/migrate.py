"""`metastore migrate`: upgrades, downgrades and checks the schema of a database."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from metastore.cli import confirm, database_option, json_option, print_json, print_table, say

if TYPE_CHECKING:
    from datetime import datetime

    from metastore.backends.base import DatabaseUrl

__all__ = ["migrate"]


@click.group()
def migrate() -> None:
    """Upgrade, downgrade or check the schema of a database.

    A REVISION is a migration's id, its number (4 or 0004), or an unambiguous prefix of its id.
    """


@migrate.command()
@click.argument("revision", default="head")
@database_option
@json_option
def upgrade(revision: str, url: DatabaseUrl, as_json: bool) -> None:
    """Apply pending migrations, up to REVISION or the newest.

    Creates the database if there is none. Each migration is applied completely or not at all.
    """
    from metastore import migrations

    applied = migrations.upgrade(url, revision)
    if as_json:
        print_json({"applied": applied})
    for id_ in applied if not as_json else ():
        say(f"applied {id_}")
    if not applied and not as_json:
        say("nothing to apply")


# `-1` is an argument here, not an option.
@migrate.command(context_settings={"ignore_unknown_options": True})
@click.argument("revision", metavar="REVISION|-N|base")
@database_option
@json_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def downgrade(revision: str, url: DatabaseUrl, as_json: bool, yes: bool) -> None:
    """Roll back what was applied after REVISION, the last N migrations, or all (base).

    Destroys the data in the tables of these migrations, and asks first.
    """
    from metastore import migrations

    doomed = migrations.rollbacks(url, revision)
    if doomed:
        if not (yes or as_json):
            rows = [(migration.id, migration.loses) for migration in doomed]
            print_table(("migration", "its rollback"), rows)
        plural = "migration" if len(doomed) == 1 else "migrations"
        confirm(f"Roll back {len(doomed)} {plural} of {url}?", yes=yes)
    rolled_back = migrations.downgrade(url, revision)
    if as_json:
        print_json({"rolled_back": rolled_back})
        return
    for id_ in rolled_back:
        say(f"rolled back {id_}")
    if not rolled_back:
        say("nothing to roll back")


@migrate.command()
@database_option
@json_option
def status(url: DatabaseUrl, as_json: bool) -> None:
    """Show the state of every migration.

    applied; pending; edited: the file changed since it was applied; missing: the file is gone;
    unknown: newer than the code; unverified: not applied by metastore.
    """
    from metastore import migrations

    rows = migrations.status(url)
    if as_json:
        print_json(rows)
        return
    print_table(
        ("migration", "state", "applied at"),
        [
            (
                row.id,
                row.state + (" (rollback edited)" if row.rollback_edited else ""),
                _when(row.applied_at),
            )
            for row in rows
        ],
    )


@migrate.command()
@database_option
@json_option
def history(url: DatabaseUrl, as_json: bool) -> None:
    """Show what was applied and rolled back, when, by whom and on which host."""
    from metastore import migrations

    rows = migrations.history(url)
    if as_json:
        print_json(rows)
        return
    print_table(
        ("at", "operation", "migration", "by", "on"),
        [(_when(it.at), it.operation, it.migration_id, it.username, it.hostname) for it in rows],
    )


@migrate.command()
@click.argument("revision", default="head")
@database_option
def plan(revision: str, url: DatabaseUrl) -> None:
    """Print the SQL that `upgrade` would run, and change nothing."""
    from metastore import migrations

    click.echo(migrations.plan(url, revision) or "-- nothing to apply\n", nl=False)


@migrate.command()
@database_option
@json_option
@click.option("--adopt", is_flag=True, help="Record the files' checksums if the schema is theirs.")
@click.pass_context
def verify(ctx: click.Context, url: DatabaseUrl, as_json: bool, adopt: bool) -> None:
    """Compare the schema, object by object, with what its migrations make.

    Names each difference, and exits with code 1 if there is any. With --adopt, edited and
    unverified migrations are accepted, if nothing else differs.
    """
    from metastore import migrations

    adopted: list[str] = []
    differences = migrations.verify(url)
    if adopt and all(it.kind in ("edited", "unverified") for it in differences):
        adopted = migrations.adopt(url)
        differences = migrations.verify(url)
    if as_json:
        print_json({"differences": differences, "adopted": adopted})
    else:
        for id_ in adopted:
            say(f"recorded {id_}")
        for difference in differences:
            say(str(difference))
        if not differences:
            say("the schema is what its migrations make")
    ctx.exit(1 if differences else 0)


@migrate.command()
@click.argument("name", nargs=-1, required=True)
@database_option
def new(name: tuple[str, ...], url: DatabaseUrl) -> None:
    """Create the two files of the next migration: `new add pool to worktrees`."""
    from metastore import migrations

    for path in migrations.new(" ".join(name), url.dialect):
        say(os.path.relpath(path))


def _when(at: datetime | None) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z" if at else ""

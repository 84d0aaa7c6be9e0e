"""`metastore admin`: the tokens that give users and services access.

Only a token goes to standard output, so that it can be piped to wherever it is stored;
explanations go to standard error.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from metastore.cli import (
    confirm,
    database_option,
    json_option,
    print_json,
    print_table,
    say,
    with_store,
)
from metastore.cli._options import DURATION

if TYPE_CHECKING:
    from metastore.backends.base import DatabaseUrl
    from metastore.repositories.auth_tokens import AuthToken, IssuedToken
    from metastore.store import MetadataStore

__all__ = ["admin"]


@click.group()
def admin() -> None:
    """Issue, list, rotate and revoke tokens."""


@admin.command()
@database_option
@json_option
def bootstrap(url: DatabaseUrl, as_json: bool) -> None:
    """Create the first admin token and print it, once.

    It grants access to everything. If such a token exists and is live, nothing is created.
    """
    issued = with_store(url, lambda store: store.auth_tokens.bootstrap())
    if issued is not None:
        _print_issued(issued, as_json)
        return
    if as_json:
        print_json({"created": False})
    say("An admin token already exists; nothing was created.", err=True)


@admin.command("create-token")
@click.argument("user", required=False)
@click.option("--user", "user_option", metavar="USER", help="The same as the argument.")
@click.option("--name", default="cli", show_default=True, help="What the token is for.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    help="What it grants: sessions:read, sessions:* or *. Repeatable; by default nothing.",
)
@click.option("--ttl", type=DURATION, help="Its lifetime, such as 30d; by default until revoked.")
@database_option
@json_option
def create_token(
    user: str | None,
    user_option: str | None,
    name: str,
    scopes: tuple[str, ...],
    ttl: timedelta | None,
    url: DatabaseUrl,
    as_json: bool,
) -> None:
    """Create a token for USER and print it, once."""
    if user is not None and user_option is not None:
        raise click.UsageError("Name the user as an argument or with --user, not both.")
    user_name = user if user is not None else user_option
    if user_name is None:
        raise click.UsageError("Missing argument 'USER'.")
    issued = with_store(
        url,
        lambda store: store.auth_tokens.issue(
            user_name=user_name, name=name, scopes=scopes, ttl=ttl
        ),
    )
    _print_issued(issued, as_json)


@admin.command("list-tokens")
@click.option("--user", metavar="USER", help="Only the tokens of this user.")
@database_option
@json_option
def list_tokens(user: str | None, url: DatabaseUrl, as_json: bool) -> None:
    """List all tokens, live or not, in the order of issue."""
    tokens = with_store(url, lambda store: _all_tokens(store, user))
    now = datetime.now(UTC)
    if as_json:
        print_json([_public(token, now) for token in tokens])
        return
    if not tokens:
        say("There are no tokens.", err=True)
        return
    print_table(
        ("ID", "USER", "NAME", "TOKEN", "STATUS", "SCOPES", "CREATED", "EXPIRES", "LAST USED"),
        [
            (
                token.id,
                token.user_name,
                token.name,
                token.token_prefix,
                token.status(now).value,
                " ".join(token.scopes) or "-",
                _shown(token.created_at),
                _shown(token.expires_at),
                _shown(token.last_used_at),
            )
            for token in tokens
        ],
    )


@admin.command("rotate-token")
@click.argument("token_id", metavar="ID")
@click.option(
    "--grace",
    type=DURATION,
    default="1h",
    show_default=True,
    help="How long the old token keeps working; 0s ends it at once.",
)
@database_option
@json_option
def rotate_token(token_id: str, grace: timedelta, url: DatabaseUrl, as_json: bool) -> None:
    """Replace the token ID, and print the new one once."""

    async def rotate(store: MetadataStore) -> tuple[IssuedToken, AuthToken]:
        issued = await store.auth_tokens.rotate(token_id, grace=grace)
        return issued, await store.auth_tokens.get(token_id)

    issued, old = with_store(url, rotate)
    _print_issued(issued, as_json, replaced=old)
    say(f"It replaces {old.id}, which works until {_shown(old.expires_at)}.", err=True)


@admin.command("revoke-token")
@click.argument("token_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@database_option
@json_option
def revoke_token(token_id: str, yes: bool, url: DatabaseUrl, as_json: bool) -> None:
    """Revoke the token ID for good."""
    token = with_store(url, lambda store: store.auth_tokens.get(token_id))
    if token.revoked_at is None:
        confirm(
            f"Revoke {token.token_prefix}... ({token.name}) of "
            f"{token.user_name}? It stops working at once.",
            yes=yes,
        )
        token = with_store(url, lambda store: store.auth_tokens.revoke(token_id))
    if as_json:
        print_json(_public(token, datetime.now(UTC)))
    say(f"{token.id} was revoked at {_shown(token.revoked_at)}.", err=True)


async def _all_tokens(store: MetadataStore, user_name: str | None) -> list[AuthToken]:
    from metastore.paging import every

    tokens = (
        every(store.auth_tokens.list)
        if user_name is None
        else every(store.auth_tokens.list_by_user, user_name)
    )
    return [token async for token in tokens]


def _print_issued(issued: IssuedToken, as_json: bool, *, replaced: AuthToken | None = None) -> None:
    record = issued.record
    if as_json:
        document = {
            "created": True,
            "token": issued.token,
            "record": _public(record, record.created_at),
        }
        if replaced is not None:
            document["replaced"] = _public(replaced, record.created_at)
        print_json(document)
    else:
        say(issued.token)
    say(
        f"Token {record.id} of {record.user_name}, scopes: "
        f"{' '.join(record.scopes) or 'none'}, expires: {_shown(record.expires_at)}. "
        "Keep it: it is not shown again, and only its hash is stored.",
        err=True,
    )


def _public(token: AuthToken, now: datetime) -> dict[str, Any]:
    """Return the public facts of a token: its columns without the hash, and its status."""
    columns = {
        name: _shown(value) if isinstance(value, datetime) else value
        for name, value in dict(token).items()
        if name != "token_hash"
    }
    return columns | {"status": token.status(now).value}


def _shown(moment: datetime | None) -> str:
    from metastore.codec import timestamp

    return "never" if moment is None else timestamp(moment)

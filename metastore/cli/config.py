"""`metastore config`: settings from the command line.

A secret is read from standard input or a prompt, never from an argument: everyone on the machine
sees arguments, and the shell keeps them in its history.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from metastore.cli import (
    database_option,
    json_option,
    print_document,
    print_json,
    print_table,
    printable,
    say,
    with_store,
)
from metastore.secrets import Secret

if TYPE_CHECKING:
    from metastore.backends.base import DatabaseUrl
    from metastore.repositories.configurations import Configuration, ConfigurationTypeName
    from metastore.store import MetadataStore

__all__ = ["config"]

_TYPES = click.Choice(["string", "integer", "float", "boolean", "json"])
_FORMATS = click.Choice(["toml", "json"])


@click.group()
def config() -> None:
    """Set, read, load and dump settings and secrets."""


@config.command("set")
@click.argument("key")
@click.argument("value", required=False)
@click.option("--type", "value_type", type=_TYPES, default="string", show_default=True)
@click.option("--description", help="What the setting is for.")
@click.option("--secret", is_flag=True, help="Encrypt it; the value is read from standard input.")
@click.option("--if-version", type=int, help="Only if it is at this version; 0 for not set.")
@database_option
@json_option
def set_(
    key: str,
    value: str | None,
    value_type: ConfigurationTypeName,
    description: str | None,
    secret: bool,
    if_version: int | None,
    url: DatabaseUrl,
    as_json: bool,
) -> None:
    """Set KEY to VALUE, by default read from standard input."""
    if secret and value is not None:
        raise click.UsageError("A secret must not be an argument: pass it on standard input.")
    text = _read_value(key, hidden=secret) if value is None else Secret(value)
    del value
    parsed = _parsed(text, value_type)
    row = with_store(
        url,
        lambda store: store.configurations.set(
            key,
            parsed if secret else parsed.reveal(),
            value_type,
            description,
            secret,
            if_version=if_version,
        ),
    )
    if as_json:
        print_json(row)
    say(f"{row.key} is at version {row.version}.", err=True)


@config.command()
@click.argument("key")
@database_option
@json_option
def get(key: str, url: DatabaseUrl, as_json: bool) -> None:
    """Print the value of KEY; secrets are hidden.

    Control characters are escaped, except newlines and tabs; --json prints the value as it is.
    """
    row = with_store(url, lambda store: store.configurations.get(key))
    if as_json:
        print_json(row)
    else:
        _print_value(row.value)


@config.command("list")
@database_option
@json_option
def list_(url: DatabaseUrl, as_json: bool) -> None:
    """List the settings; the values of secrets are hidden."""
    rows = with_store(url, _all_settings)
    if as_json:
        print_json(rows)
        return
    if not rows:
        say("There are no settings.", err=True)
        return
    print_table(
        ("KEY", "TYPE", "VALUE", "VERSION", "DESCRIPTION"),
        [
            (
                row.key,
                row.value_type.value,
                row.value,
                str(row.version),
                row.description or "",
            )
            for row in rows
        ],
    )


@config.command()
@click.argument("key")
@database_option
def reveal(key: str, url: DatabaseUrl) -> None:
    """Print the value of KEY, decrypted if it is a secret."""
    import msgspec

    held = Secret(with_store(url, lambda store: store.configurations.reveal(key)))
    is_text = isinstance(held.reveal(), str)
    text = held.reveal() if is_text else msgspec.json.encode(held.reveal()).decode()
    if _is_watched():
        _print_value(text)
    else:
        # A program needs the secret unchanged, including what looks like a colour code.
        click.echo(text, color=True)


@config.command()
@click.argument("key")
@database_option
def unset(key: str, url: DatabaseUrl) -> None:
    """Delete KEY."""
    with_store(url, lambda store: store.configurations.delete(key))


@config.command("rotate-keys")
@database_option
@json_option
def rotate_keys(url: DatabaseUrl, as_json: bool) -> None:
    """Re-encrypt every secret under the newest key. If interrupted, run it again."""
    count = with_store(url, lambda store: store.configurations.rotate_keys())
    if as_json:
        print_json({"rotated": count})
    say(f"{count} secrets were re-encrypted under the newest key.", err=True)


@config.command("generate-key")
def generate_key() -> None:
    """Print a new key for METASTORE_SECRET_KEYS or a key file."""
    from metastore import secrets

    say(secrets.generate_key())
    say("Keep it outside the database and its backups.", err=True)


@config.command()
@click.option("--format", "form", type=_FORMATS, default="toml", show_default=True)
@database_option
def dump(form: Any, url: DatabaseUrl) -> None:
    """Print every setting except the secrets as one document."""
    print_document(with_store(url, lambda store: store.configurations.dump(form)), form)


@config.command()
@click.argument("file", type=click.File("r", encoding="utf-8"))
@click.option("--format", "form", type=_FORMATS, help="Default: by the file's suffix.")
@database_option
@json_option
def load(file: Any, form: Any, url: DatabaseUrl, as_json: bool) -> None:
    """Set every key of FILE (- is standard input), or none."""
    form = form or ("json" if file.name.endswith(".json") else "toml")
    document = file.read()
    count = with_store(url, lambda store: store.configurations.load(document, form))
    if as_json:
        print_json({"changed": count})
    say(f"{count} settings changed.", err=True)


def _is_watched() -> bool:
    return sys.stdout.isatty()


def _print_value(text: str) -> None:
    click.echo(printable(text, keep="\n\t"))


def _shown(value: Any) -> str:
    import msgspec

    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _read_value(key: str, *, hidden: bool) -> Secret[str]:
    if sys.stdin.isatty():
        return Secret(
            click.prompt(
                f"Value of {printable(key)}",
                hide_input=hidden,
                confirmation_prompt=hidden,
                err=True,
            )
        )
    return Secret(sys.stdin.read().removesuffix("\n"))


def _parsed(text: Secret[str], value_type: str) -> Secret[Any]:
    """Parse a value from the command line."""
    import msgspec

    if value_type == "string":
        return text
    try:
        return Secret(msgspec.json.decode(text.reveal()))
    except (msgspec.DecodeError, ValueError):
        pass
    # Outside the handler, whose exception has the text, which may be a secret.
    raise click.UsageError(f"The value is not of type {value_type}.")


async def _all_settings(store: MetadataStore) -> list[Configuration]:
    from metastore.paging import every

    return [row async for row in every(store.configurations.list)]

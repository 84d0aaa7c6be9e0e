"""The `metastore` command.

Every module here whose name has no leading underscore is a command: `metastore/cli/purge.py`
holds a click command named `purge`. Such a module imports at the top only what loads fast,
because `metastore --help` imports all of them, and everything else inside its functions.
"""

from __future__ import annotations

import errno
import importlib
import pkgutil
import sys
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from metastore.backends.base import DatabaseUrl
    from metastore.store import MetadataStore

__all__ = [
    "Refused",
    "confirm",
    "database_option",
    "json_option",
    "main",
    "print_document",
    "print_json",
    "print_table",
    "printable",
    "say",
    "with_store",
]

Result = TypeVar("Result")
_F = TypeVar("_F", bound="Callable[..., Any]")


class Refused(click.ClickException):
    """Stops a command: exit code 1, and the reason in one line on stderr."""

    def show(self, file: Any = None) -> None:
        """Print the reason."""
        del file
        say(f"metastore: error: {' '.join(self.message.split())}", err=True)


class _CommandLine(click.Group):
    """Finds the commands, and turns their errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the modules in this package."""
        del ctx
        return sorted(it.name for it in pkgutil.iter_modules(__path__) if it.name[0] != "_")

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command `cmd_name`."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"{__name__}.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; its errors become `Refused`, so that users see no traceback."""
        from metastore.errors import MetastoreError

        try:
            return super().invoke(ctx)
        except MetastoreError as error:
            raise Refused(str(error)) from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # the reader of the pipe is gone: click exits quietly
            what = error.strerror or str(error)
            raise Refused(f"{error.filename}: {what}" if error.filename else what) from error


@click.group(cls=_CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="metastore", prog_name="metastore")
@click.option("--db", metavar="URL", help="The database; may also follow the command.")
def main(db: str | None) -> None:
    """Manage the metadata database of an execution service."""
    del db  # read by the commands, see `database_option`


def database_option(command: _F) -> _F:
    """Give a command the option `--db` and the parameter `url`, resolved."""
    return click.option(
        "--db",
        "url",
        metavar="URL",
        callback=_resolve,
        help="The database, sqlite:///relative.db or sqlite:////absolute.db. "
        "Default: METASTORE_DB_URL, or sqlite:///.artifacts/data/metadata.db.",
    )(command)


def _resolve(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> DatabaseUrl:
    from metastore import urls

    return urls.resolve(value if value is not None else ctx.find_root().params.get("db"))


def with_store(url: DatabaseUrl, operation: Callable[[MetadataStore], Awaitable[Result]]) -> Result:
    """Open the store at `url`, run `operation` on it, close it, and return the result."""
    import asyncio

    from metastore.store import MetadataStore

    async def run() -> Result:
        async with MetadataStore.open(url.text) as store:
            return await operation(store)

    return asyncio.run(run())


def json_option(command: _F) -> _F:
    """Give a command the flag `--json` and the parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(
        command
    )


def confirm(question: str, *, yes: bool) -> None:
    """Ask before destroying something, unless `yes` is set.

    Raises:
        Refused: the session is not interactive.
        click.Abort: the answer was no.
    """
    if yes:
        return
    if not _is_interactive():
        raise Refused(f"{question} Nobody is there to ask: pass --yes.")
    click.confirm(printable(question), abort=True)


def _is_interactive() -> bool:
    return sys.stdin.isatty()


def print_json(value: Any) -> None:
    """Print `value`, which may be anything that msgspec encodes, as indented JSON."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    print_document(f"{text}\n", "json")


def print_document(document: str, form: Literal["json", "toml"]) -> None:
    r"""Print a document, with `\u` escapes for control characters.

    Both formats allow these wherever stored text may occur, so the document means the same.
    """
    click.echo(
        "".join(
            character
            if character.isprintable() or character in "\n\t"
            else _escaped(character, form)
            for character in document
        ),
        nl=False,
    )


def _escaped(character: str, form: Literal["json", "toml"]) -> str:
    if form == "toml":
        return f"\\U{ord(character):08x}"
    # Beyond 16 bits, JSON uses a surrogate pair.
    code = character.encode("utf-16-be").hex()
    return "".join(f"\\u{code[index : index + 4]}" for index in range(0, len(code), 4))


def say(line: str = "", *, err: bool = False) -> None:
    """Print a line, with escapes for control characters. All output lines go through here."""
    click.echo(printable(line), err=err)


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows as a table on a terminal, and as aligned lines otherwise."""
    rows = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*headers, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*map(Text, row))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, *rows):
        click.echo(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def printable(text: str, *, keep: str = "") -> str:
    """Return `text` with its control characters escaped: names and paths come from users.

    These are the C0 and C1 characters and those that change the direction of text, except those in
    `keep`.
    """
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape").decode()
        for character in text
    )

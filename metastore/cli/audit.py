"""`metastore audit`: whether history is what the store wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import click

from metastore.cli import database_option, json_option, print_json, printable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from metastore.store import MetadataStore
    from metastore.urls import DatabaseUrl

__all__ = ["audit"]

Result = TypeVar("Result")


@click.group()
def audit() -> None:
    """Find what was edited, removed or inserted behind the store's back."""


@audit.command()
@click.option("--checkpoint", metavar="DIGEST", help="Also prove that it still holds.")
@database_option
@json_option
def verify(checkpoint: str | None, url: DatabaseUrl, as_json: bool) -> None:
    """Check every chain of events and tool executions; code 1 if one does not hold."""
    report = _with_store(url, lambda store: store.audit_chains.verify(checkpoint=checkpoint))
    if as_json:
        print_json(report)
    else:
        for finding in report.findings:
            click.echo(printable(str(finding)))
    click.echo(
        f"{report.rows} rows in {report.chains} chains, {len(report.findings)} faults.", err=True
    )
    if report.findings:
        raise click.exceptions.Exit(1)


@audit.command()
@database_option
@json_option
def checkpoint(url: DatabaseUrl, as_json: bool) -> None:
    """Print a digest over the ends of all chains. Keep it where nobody else writes."""
    digest = _with_store(url, lambda store: store.audit_chains.checkpoint())
    if as_json:
        print_json({"checkpoint": digest})
    else:
        click.echo(digest)


def _with_store(
    url: DatabaseUrl, operation: Callable[[MetadataStore], Awaitable[Result]]
) -> Result:
    import asyncio

    from metastore.store import MetadataStore

    async def run() -> Result:
        async with MetadataStore.open(url.text) as store:
            return await operation(store)

    return asyncio.run(run())

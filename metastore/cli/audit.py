"""`metastore audit`: whether history is what the store wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from metastore.cli import database_option, json_option, print_json, say, with_store

if TYPE_CHECKING:
    from metastore.urls import DatabaseUrl

__all__ = ["audit"]


@click.group()
def audit() -> None:
    """Find what was edited, removed or inserted behind the store's back."""


@audit.command()
@click.option("--checkpoint", metavar="DIGEST", help="Also prove that it still holds.")
@database_option
@json_option
def verify(checkpoint: str | None, url: DatabaseUrl, as_json: bool) -> None:
    """Check every chain of events and tool executions; code 1 if one does not hold."""
    report = with_store(url, lambda store: store.audit_chains.verify(checkpoint=checkpoint))
    if as_json:
        print_json(report)
    else:
        for finding in report.findings:
            say(str(finding))
    say(f"{report.rows} rows in {report.chains} chains, {len(report.findings)} faults.", err=True)
    if report.findings:
        raise click.exceptions.Exit(1)


@audit.command()
@database_option
@json_option
def checkpoint(url: DatabaseUrl, as_json: bool) -> None:
    """Print a digest over the ends of all chains. Keep it where nobody else writes."""
    digest = with_store(url, lambda store: store.audit_chains.checkpoint())
    if as_json:
        print_json({"checkpoint": digest})
    else:
        say(digest)

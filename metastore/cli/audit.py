"""`metastore audit`: checks that history is what the store wrote."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from metastore.cli import Refused, database_option, json_option, print_json, say, with_store

if TYPE_CHECKING:
    from metastore.backends.base import DatabaseUrl
    from metastore.repositories.audit_chains import AuditReport
    from metastore.store import MetadataStore

__all__ = ["audit"]

_file = click.Path(path_type=Path, dir_okay=False)


@click.group()
def audit() -> None:
    """Find rows that were edited, removed or inserted behind the store's back."""


@audit.command()
@click.option("--checkpoint", metavar="DIGEST", help="Also check that this checkpoint still holds.")
@click.option(
    "--checkpoints",
    "anchors",
    metavar="FILE",
    type=_file,
    help="Check every digest of a file, one per line.",
)
@click.option("--since", metavar="DIGEST", help="Check that it is an ancestor of the others.")
@click.option(
    "--verify-key", metavar="FILE", type=_file, help="The public key to check signatures with."
)
@database_option
@json_option
def verify(
    checkpoint: str | None,
    anchors: Path | None,
    since: str | None,
    verify_key: Path | None,
    url: DatabaseUrl,
    as_json: bool,
) -> None:
    """Check the schema, every checkpoint and every chain; exit with code 1 on a finding."""
    digests = [checkpoint] if checkpoint is not None else []
    if anchors is not None:
        digests += _digests(anchors)
    key = None if verify_key is None else verify_key.read_text("utf-8").strip()

    async def check(store: MetadataStore) -> AuditReport:
        return await store.audit_chains.verify(checkpoint=digests, since=since, verify_key=key)

    report = with_store(url, check)
    if as_json:
        print_json(report)
    else:
        for finding in report.findings:
            say(str(finding))
    for purge in report.purges:
        what = f"{purge.resource} of {purge.resource_id}"
        say(f"Purged at {purge.purged_at}: {what}, {purge.purged}.", err=True)
    say(
        f"{report.rows} rows in {report.chains} chains, {report.checkpoints} checkpoints "
        f"({report.signed} signed), {len(report.findings)} faults.",
        err=True,
    )
    if report.findings:
        raise click.exceptions.Exit(1)


@audit.command()
@click.option("--since", metavar="DIGEST", help="Check that it is an ancestor of the new one.")
@click.option(
    "--sign-key", metavar="FILE", type=_file, help="Sign the digest, and replace the key."
)
@click.option(
    "--anchor-file", metavar="FILE", type=_file, help="Append the digest to this file, durably."
)
@click.option(
    "--anchor-command",
    metavar="CMD",
    help="Pass the digest to this shell command, as a line on its standard input.",
)
@database_option
@json_option
def checkpoint(
    since: str | None,
    sign_key: Path | None,
    anchor_file: Path | None,
    anchor_command: str | None,
    url: DatabaseUrl,
    as_json: bool,
) -> None:
    """Print a digest over all history. Keep it where nobody else can write."""
    signer = None
    if sign_key is not None:
        from metastore.sealing import Signer

        signer = Signer(sign_key)
    digest = with_store(
        url, lambda store: store.audit_chains.checkpoint(since=since, signer=signer)
    )
    # Printed first, so that it is not lost if an anchor fails.
    if as_json:
        print_json({"checkpoint": digest})
    else:
        say(digest)
    if anchor_file is not None:
        _append(anchor_file, digest)
    if anchor_command is not None:
        _hand_over(anchor_command, digest)


@audit.command()
@click.option(
    "--sign-key",
    metavar="FILE",
    type=_file,
    required=True,
    help="The secret key's file, mode 0600.",
)
@click.option(
    "--verify-key",
    metavar="FILE",
    type=_file,
    help="Where to write the public key of the first signature.",
)
def keygen(sign_key: Path, verify_key: Path | None) -> None:
    """Generate a key that signs checkpoints. Keep the public key where nobody else can write."""
    from metastore.sealing import generate

    public = generate(sign_key)
    if verify_key is not None:
        verify_key.write_text(public + "\n", "utf-8")
    say(public)


def _digests(path: Path) -> list[str]:
    """Return the digests of a file, one per line.

    Raises:
        Refused: a line is not a digest.
    """
    lines = path.read_text("utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        if not re.fullmatch(r"[0-9a-f]{64}", line.strip()):
            raise Refused(f"{path}, line {number}: not a digest")
    return [line.strip() for line in lines]


def _append(path: Path, digest: str) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        # A single write: others may append concurrently.
        os.write(descriptor, f"{digest}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hand_over(command: str, digest: str) -> None:
    """Run a shell command of the user, without environment variables that may hold keys.

    Raises:
        Refused: it failed.
    """
    import subprocess

    from metastore.environment import clean_environment

    done = subprocess.run(  # noqa: S602 - the command is the user's own
        command, shell=True, input=f"{digest}\n", text=True, env=clean_environment(), check=False
    )
    if done.returncode:
        raise Refused(f"the anchor command ended with code {done.returncode}")

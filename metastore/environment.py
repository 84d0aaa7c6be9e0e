"""What other programs get to see of the environment."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["clean_environment"]

PREFIX = "METASTORE_"
"""What the names of the store's own variables begin with: the keys of secrets are among them."""


def clean_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment without the store's own variables, for a process to be started.

    Whatever a command prints ends up in events and logs, beside the ciphertexts that the keys in
    `METASTORE_SECRET_KEYS` open. None stands for the environment of this process.
    """
    inherited = os.environ if environment is None else environment
    return {name: value for name, value in inherited.items() if not name.startswith(PREFIX)}

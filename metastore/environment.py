"""The environment that is passed on to other programs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["clean_environment"]

PREFIX = "METASTORE_"
"""The prefix of the store's own variables, which include the secret keys."""


def clean_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment without the store's own variables, for a child process.

    What a command prints ends up in events and logs, beside the ciphertexts that the keys in
    `METASTORE_SECRET_KEYS` open. The default is the environment of this process.
    """
    inherited = os.environ if environment is None else environment
    return {name: value for name, value in inherited.items() if not name.startswith(PREFIX)}

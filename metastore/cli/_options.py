"""Option types of the commands, besides text and numbers."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

__all__ = ["DURATION", "Duration"]

_DURATION = re.compile(
    r"(?:(?P<days>[0-9]+)d)?\s*(?:(?P<hours>[0-9]+)h)?\s*"
    r"(?:(?P<minutes>[0-9]+)m)?\s*(?:(?P<seconds>[0-9]+)s)?"
)

if TYPE_CHECKING:
    _ParamType = click.ParamType[timedelta]
else:
    # Only recent releases of click are generic at run time.
    _ParamType = click.ParamType


class Duration(_ParamType):
    """A time span: `30d`, `12h`, `15m`, `30s`, or several of them, as in `1d 12h`."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """Parse `value`."""
        if isinstance(value, timedelta):
            return value
        text = str(value).strip()
        parts = _DURATION.fullmatch(text)
        if not text or parts is None:
            self.fail(f"{value!r} is not a duration like 30d, 12h, 15m or 30s", param, ctx)
        try:
            return timedelta(**{unit: int(count or 0) for unit, count in parts.groupdict().items()})
        except (OverflowError, ValueError):
            self.fail(f"{value!r} is too long", param, ctx)


DURATION = Duration()

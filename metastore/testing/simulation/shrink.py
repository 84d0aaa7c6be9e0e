"""Make a list that fails as short as possible."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["shrink"]

Item = TypeVar("Item")


def shrink(
    items: Sequence[Item], still_fails: Callable[[list[Item]], bool], *, attempts: int = 400
) -> list[Item]:
    """Return a part of `items` that still fails, and from which nothing more can be left out.

    Halves are left out first, then quarters, in the end single items. With `attempts` used up,
    the shortest list so far is returned.
    """
    shortest = list(items)
    size = len(shortest)
    while size > 0:
        start, before = 0, len(shortest)
        while start < len(shortest) and attempts > 0:
            attempts -= 1
            without = shortest[:start] + shortest[start + size :]
            if still_fails(without):
                shortest = without
            else:
                start += size
        if size == 1 and len(shortest) == before:
            break
        size = max(1, size // 2) if size > 1 or attempts > 0 else 0
        if attempts <= 0:
            break
    return shortest

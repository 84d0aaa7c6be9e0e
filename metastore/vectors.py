"""Vectors as columns store them, and the search for the nearest.

A vector is stored as little-endian float32. Cosines are computed in float64: approximately for
all, with numpy if installed, and exactly for those that may be among the best. The product of two
float32 numbers is exact in float64 and `math.fsum` rounds once, so the result does not depend on
numpy, the order of the sum or the machine.
"""

from __future__ import annotations

import importlib.util
import math
import struct
import sys
from array import array
from operator import mul
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["MAX_DIMENSIONS", "Nearest", "Vector", "block_rows", "decode", "dimensions", "encode"]

Vector = tuple[float, ...]
"""The numbers of a vector. They come back rounded to float32."""

MAX_DIMENSIONS = 16_384
"""The most numbers a vector may have."""

_NUMPY_BLOCK = 1 << 20
_PYTHON_BLOCK = 1 << 18
"""Bytes of vectors to read and score at once."""

_SLACK = 1e-9
"""The largest difference between a quick cosine and the exact one."""


HAS_NUMPY = importlib.util.find_spec("numpy") is not None
"""Whether numpy is installed. It is imported at the first search: that takes as long as importing
everything else, and most processes never search."""


def encode(values: Sequence[float]) -> bytes:
    """Encode a vector for its column.

    Raises:
        ValueError: it is not a sequence of 1 to `MAX_DIMENSIONS` finite numbers, or all of them are
            zero as float32.
    """
    if isinstance(values, str | bytes | bytearray | memoryview) or not hasattr(values, "__len__"):
        raise ValueError("must be a sequence of numbers")
    try:
        floats = array("f", values) if 1 <= len(values) <= MAX_DIMENSIONS else None
    except Exception:  # noqa: BLE001 - whatever the caller's own type raises
        raise ValueError("must hold numbers only") from None
    if floats is None:
        raise ValueError(f"must have 1 to {MAX_DIMENSIONS} dimensions")
    if not all(map(math.isfinite, floats)):
        raise ValueError("must hold finite numbers of float32 only")
    if not any(floats):
        raise ValueError("must not be zero: it has no direction")
    if sys.byteorder == "big":
        floats.byteswap()
    return floats.tobytes()


def decode(blob: bytes) -> Vector:
    """Decode a vector from its column."""
    return struct.unpack(f"<{dimensions(blob)}f", blob)


def dimensions(blob: bytes) -> int:
    """Return the number of dimensions of an encoded vector."""
    return len(blob) // 4


def block_rows(count: int) -> int:
    """Return how many vectors of `count` dimensions to read at once."""
    return max(1, (_NUMPY_BLOCK if HAS_NUMPY else _PYTHON_BLOCK) // (4 * count))


class Nearest:
    """Collects the vectors nearest to a query, in constant memory."""

    def __init__(self, query: bytes, *, limit: int, min_score: float | None = None) -> None:
        self._query = decode(query)
        self._square = math.fsum(map(mul, self._query, self._query))
        self._limit = limit
        self._min_score = -math.inf if min_score is None else min_score
        self._quick = _quick_with_numpy if HAS_NUMPY else _quick_with_python
        # The best so far, sorted, as (-score, name): equal scores are ordered by name.
        self._best: list[tuple[float, str]] = []

    def add(self, block: Sequence[tuple[str, bytes]]) -> None:
        """Score a block of named vectors, which have the query's dimensions."""
        if not block:
            return
        scores = self._quick(self._query, self._square, [blob for _, blob in block])
        least = self._min_score
        if len(self._best) == self._limit:
            least = max(least, -self._best[-1][0])
        if len(scores) > self._limit:
            least = max(least, sorted(scores)[-self._limit])
        least -= 2 * _SLACK
        found = (
            (-self._exact(blob), name)
            for (name, blob), score in zip(block, scores, strict=True)
            if score >= least
        )
        best = [*self._best, *(match for match in found if -match[0] >= self._min_score)]
        self._best = sorted(best)[: self._limit]

    def found(self) -> list[tuple[str, float]]:
        """Return the names and scores of the best, nearest first."""
        return [(name, -negative) for negative, name in self._best]

    def _exact(self, blob: bytes) -> float:
        values = decode(blob)
        product = math.fsum(map(mul, self._query, values))
        square = math.fsum(map(mul, values, values))
        return max(-1.0, min(1.0, _cosine(product, square, self._square)))


def _cosine(product: float, square: float, other: float) -> float:
    length = math.sqrt(square * other)
    return product / length if length else 0.0


def _quick_with_python(query: Vector, square: float, blobs: Iterable[bytes]) -> list[float]:
    unpack = struct.Struct(f"<{len(query)}f").unpack
    return [
        _cosine(sum(map(mul, query, values)), sum(map(mul, values, values)), square)
        for values in map(unpack, blobs)
    ]


def _quick_with_numpy(query: Vector, square: float, blobs: Iterable[bytes]) -> list[float]:
    numpy = importlib.import_module("numpy")
    stored = numpy.frombuffer(b"".join(blobs), dtype="<f4")
    matrix = stored.reshape(-1, len(query)).astype(numpy.float64)
    lengths = numpy.sqrt(numpy.einsum("ij,ij->i", matrix, matrix) * square)
    lengths[lengths == 0] = numpy.inf
    scores: list[float] = (matrix @ numpy.array(query) / lengths).tolist()
    return scores

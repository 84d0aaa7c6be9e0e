"""How long a search of embeddings takes, and how much memory.

python -m benchmarks.embeddings                 10,000 and 100,000 vectors of 384 dimensions
python -m benchmarks.embeddings --vectors 1000  another number; may be given several times

Each number gets a database of its own and is searched with numpy, where that is installed, and
without. The time is the median of the searches, the memory what Python allocated at most during
one of them, measured apart.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
import tracemalloc
from array import array
from pathlib import Path

import click

from metastore import MetadataStore, NewEmbedding, vectors

DIMENSIONS = 384
BATCH = 1_000


def _random_vector(source: random.Random) -> array[float]:
    return array("f", (source.gauss(0, 1) for _ in range(DIMENSIONS)))


async def _fill(store: MetadataStore, count: int) -> float:
    """Embed `count` texts and return how many were stored in a second."""
    source = random.Random(count)  # noqa: S311 - data to search, no secret
    seconds = 0.0
    for start in range(0, count, BATCH):
        batch = [
            NewEmbedding(f"doc-{number:07}", "x" * 500, _random_vector(source))
            for number in range(start, min(start + BATCH, count))
        ]
        began = time.perf_counter()
        await store.embedding_index.upsert_many(scope="doc", embeddings=batch)
        seconds += time.perf_counter() - began
    return count / seconds


async def _search(store: MetadataStore, queries: int) -> tuple[float, float]:
    """Return the median time of a search in milliseconds, and its memory in MiB."""
    source = random.Random(0)  # noqa: S311 - the same
    times = []
    for _ in range(queries):
        query = _random_vector(source)
        began = time.perf_counter()
        await store.embedding_index.search(scope="doc", vector=query, limit=10)
        times.append(time.perf_counter() - began)
    tracemalloc.start()
    await store.embedding_index.search(scope="doc", vector=_random_vector(source), limit=10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return statistics.median(times) * 1e3, peak / 2**20


async def _measure(count: int, queries: int) -> None:
    installed = vectors.HAS_NUMPY
    with tempfile.TemporaryDirectory(prefix="metastore-benchmark-") as directory:
        url = f"sqlite:///{Path(directory) / 'embeddings.db'}"
        async with MetadataStore.open(url, migrate=True) as store:
            stored = await _fill(store, count)
            click.echo(f"{count:>9,} vectors: {stored:,.0f} stored a second")
            for name, used in (("numpy", True), ("Python", False)):
                if used and not installed:
                    click.echo("          numpy  is not installed")
                    continue
                vectors.HAS_NUMPY = used
                try:
                    milliseconds, memory = await _search(store, queries)
                finally:
                    vectors.HAS_NUMPY = installed
                click.echo(
                    f"          {name:<6} {milliseconds:8.1f} ms a search, {memory:.1f} MiB",
                )


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="Measure the search of embeddings.")
    parser.add_argument("--vectors", type=int, action="append", help="how many to search")
    parser.add_argument("--queries", type=int, default=7, help="searches to take the median of")
    options = parser.parse_args()
    for count in options.vectors or [10_000, 100_000]:
        asyncio.run(_measure(count, options.queries))


if __name__ == "__main__":
    main()

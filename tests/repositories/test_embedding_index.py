"""The embedding index: exact cosines, with numpy and without, in memory that does not grow."""

from __future__ import annotations

import asyncio
import math
import random
import tracemalloc
from array import array
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest

from metastore import vectors
from metastore.errors import DimensionMismatch, InvalidValue, NotFound, StoreCorrupt
from metastore.repositories.embedding_index import MAX_EMBEDDINGS, NewEmbedding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metastore.store import MetadataStore
    from tests.conftest import Clock


@pytest.fixture(params=["python", "numpy"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to score: the tests that use it run once with each."""
    if request.param == "numpy" and not vectors.HAS_NUMPY:
        pytest.skip("numpy is not installed")
    if request.param == "python":
        monkeypatch.setattr(vectors, "HAS_NUMPY", False)
    return str(request.param)


def float32(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(array("f", values))


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine in exact arithmetic, rounded at the end."""
    a, b = [list(map(Fraction, float32(vector))) for vector in (one, other)]
    product = sum((x * y for x, y in zip(a, b, strict=True)), Fraction())
    squares = sum((x * x for x in a), Fraction()) * sum((y * y for y in b), Fraction())
    return math.copysign(math.sqrt(product * product / squares), product)


def gauss(seed: int, count: int, dimensions: int) -> list[list[float]]:
    source = random.Random(seed)
    return [[source.gauss(0, 1) for _ in range(dimensions)] for _ in range(count)]


async def test_upsert__keeps_a_text_and_its_vector(store: MetadataStore, clock: Clock) -> None:
    before = clock.now
    row = await store.embedding_index.upsert(
        scope="doc", ref_id="README", text="Read me", vector=[0.1, -2, 3.5]
    )
    assert before <= row.created_at <= clock.now
    assert dict(row) == {
        "id": row.id,
        "scope": "doc",
        "ref_id": "README",
        "text": "Read me",
        "vector": float32([0.1, -2, 3.5]),
        "dimensions": 3,
        "created_at": row.created_at,
    }
    assert await store.embedding_index.get(scope="doc", ref_id="README") == row


async def test_upsert__replaces_what_the_reference_had(store: MetadataStore) -> None:
    index = store.embedding_index
    first = await index.upsert(scope="doc", ref_id="a", text="old", vector=[1, 0])
    other = await index.upsert(scope="memory", ref_id="a", text="other", vector=[1, 0, 0])
    second = await index.upsert(scope="doc", ref_id="a", text="new", vector=[0, 1])
    assert second.id == first.id
    assert (second.text, second.vector) == ("new", (0.0, 1.0))
    assert second.created_at > first.created_at
    assert await index.get(scope="doc", ref_id="a") == second
    assert await index.get(scope="memory", ref_id="a") == other


@pytest.mark.parametrize(
    "vector",
    [
        [],
        [0.0, 0.0],
        [-0.0],
        [1e-60, 0],
        [1.0, math.nan],
        [math.inf],
        [1e39],
        ["1"],
        [None],
        [[1.0]],
        "1",
        b"\0\0\0\1",
        7,
        None,
        iter([1.0]),
        [1.0] * (vectors.MAX_DIMENSIONS + 1),
    ],
    ids=lambda vector: repr(vector)[:20],
)
async def test_vectors__without_a_direction_are_refused(store: MetadataStore, vector: Any) -> None:
    index = store.embedding_index
    for call in (
        lambda: index.upsert(scope="s", ref_id="a", text="t", vector=vector),
        lambda: index.upsert_many(
            scope="s", embeddings=[NewEmbedding("b", "t", [1]), NewEmbedding("a", "t", vector)]
        ),
        lambda: index.search(scope="s", vector=vector),
    ):
        with pytest.raises(InvalidValue) as refused:
            await call()
        assert (refused.value.table, refused.value.column) == ("embedding_index", "vector")
    for ref_id in "ab":
        with pytest.raises(NotFound):
            await index.get(scope="s", ref_id=ref_id)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("scope", {"scope": ""}),
        ("ref_id", {"ref_id": "r" * 256}),
        ("text", {"text": "nul\0"}),
    ],
)
async def test_upsert__refuses(store: MetadataStore, column: str, values: dict[str, Any]) -> None:
    good: dict[str, Any] = {"scope": "s", "ref_id": "a", "text": "t", "vector": [1.0]}
    with pytest.raises(InvalidValue) as refused:
        await store.embedding_index.upsert(**(good | values))
    assert refused.value.column == column


async def test_dimensions__are_those_of_the_scope(store: MetadataStore) -> None:
    index = store.embedding_index
    await index.upsert(scope="doc", ref_id="a", text="t", vector=[1, 2])
    await index.upsert(scope="memory", ref_id="a", text="t", vector=[1, 2, 3])
    for call in (
        lambda: index.upsert(scope="doc", ref_id="b", text="t", vector=[1, 2, 3]),
        lambda: index.upsert(scope="doc", ref_id="a", text="t", vector=[1, 2, 3]),
        lambda: index.upsert_many(scope="doc", embeddings=[NewEmbedding("b", "t", [1, 2, 3])]),
        lambda: index.search(scope="doc", vector=[1, 2, 3]),
    ):
        with pytest.raises(DimensionMismatch) as refused:
            await call()
        error = refused.value
        assert (error.scope, error.expected, error.actual) == ("doc", 2, 3)
        assert isinstance(error, InvalidValue)
    with pytest.raises(NotFound):
        await index.get(scope="doc", ref_id="b")
    assert (await index.get(scope="doc", ref_id="a")).vector == (1.0, 2.0)
    # An empty scope has no dimensions.
    await index.delete(scope="doc", ref_id="a")
    await index.upsert(scope="doc", ref_id="a", text="t", vector=[1, 2, 3])


async def test_dimensions__are_settled_by_one_of_many_racers(store: MetadataStore) -> None:
    results = await asyncio.gather(
        *(
            store.embedding_index.upsert(
                scope="doc", ref_id=str(number), text="t", vector=[1.0] * (2 + number % 3)
            )
            for number in range(30)
        ),
        return_exceptions=True,
    )
    stored = [row for row in results if not isinstance(row, BaseException)]
    refused = [error for error in results if isinstance(error, DimensionMismatch)]
    assert {row.dimensions for row in stored} == {2}
    assert (len(stored), len(refused)) == (10, 20)


async def test_upsert_many__adds_and_replaces_all_or_none(store: MetadataStore) -> None:
    index = store.embedding_index
    await index.upsert(scope="doc", ref_id="1", text="old", vector=[9, 9])
    new = [NewEmbedding(str(number), f"text {number}", [number, 1]) for number in range(100)]
    assert await index.upsert_many(scope="doc", embeddings=iter(new)) == 100
    for number in (0, 1, 99):
        row = await index.get(scope="doc", ref_id=str(number))
        assert (row.text, row.vector, row.dimensions) == (f"text {number}", (number, 1), 2)
    assert await index.upsert_many(scope="doc", embeddings=[]) == 0
    with pytest.raises(DimensionMismatch):
        await index.upsert_many(
            scope="other", embeddings=[NewEmbedding("a", "t", [1]), NewEmbedding("b", "t", [1, 2])]
        )
    with pytest.raises(InvalidValue):
        await index.upsert_many(
            scope="other", embeddings=[NewEmbedding("a", "t", [1]), NewEmbedding("", "t", [2])]
        )
    with pytest.raises(NotFound):
        await index.get(scope="other", ref_id="a")


async def test_delete__wants_a_reference_that_is_there(store: MetadataStore) -> None:
    index = store.embedding_index
    await index.upsert(scope="doc", ref_id="a", text="t", vector=[1])
    await index.delete(scope="doc", ref_id="a")
    for verb in (index.get, index.delete):
        with pytest.raises(NotFound) as missing:
            await verb(scope="doc", ref_id="a")
        assert missing.value.key == ("doc", "a")
    assert await index.search(scope="doc", vector=[1]) == []


# Searching.


@pytest.mark.usefixtures("arithmetic")
async def test_search__finds_the_nearest_first(store: MetadataStore) -> None:
    index = store.embedding_index
    for ref_id, vector in {
        "same": [2, 0],
        "near": [2, 1],
        "across": [0, 5],
        "opposite": [-3, 0],
    }.items():
        await index.upsert(scope="doc", ref_id=ref_id, text=f"the {ref_id}", vector=vector)
    await index.upsert(scope="other", ref_id="x", text="x", vector=[1, 0])
    found = await index.search(scope="doc", vector=[1, 0])
    assert [(match.ref_id, match.text) for match in found] == [
        ("same", "the same"),
        ("near", "the near"),
        ("across", "the across"),
        ("opposite", "the opposite"),
    ]
    assert [match.score for match in found] == [1.0, 2 / math.sqrt(5), 0.0, -1.0]
    assert await index.search(scope="doc", vector=[1, 0], limit=2) == found[:2]
    assert await index.search(scope="doc", vector=[1, 0], min_score=0) == found[:3]
    assert await index.search(scope="doc", vector=[1, 0], min_score=1.0) == found[:1]
    assert await index.search(scope="doc", vector=[1, 0], min_score=1.1) == []
    assert await index.search(scope="none", vector=[1]) == []


@pytest.mark.usefixtures("arithmetic")
async def test_search__is_exact_over_many_blocks(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "block_rows", lambda _: 7)
    stored = {f"r{n:03}": vector for n, vector in enumerate(gauss(1, 200, 8))}
    await store.embedding_index.upsert_many(
        scope="doc", embeddings=[NewEmbedding(name, name, it) for name, it in stored.items()]
    )
    for query in gauss(2, 5, 8):
        scores = {name: cosine(query, vector) for name, vector in stored.items()}
        expected = sorted(stored, key=lambda name: (-scores[name], name))
        for limit in (1, 10, 200, 1000):
            found = await store.embedding_index.search(scope="doc", vector=query, limit=limit)
            assert [match.ref_id for match in found] == expected[:limit]
            for match in found:
                assert math.isclose(match.score, scores[match.ref_id], abs_tol=1e-15)


@pytest.mark.usefixtures("arithmetic")
async def test_search__puts_equal_scores_in_the_order_of_references(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "block_rows", lambda _: 10)
    # Multiples by powers of two have the same direction to the last bit.
    [direction] = gauss(3, 1, 100)
    names = [f"r{n:02}" for n in range(60)]
    shuffled = random.Random(4).sample(names, len(names))
    await store.embedding_index.upsert_many(
        scope="doc",
        embeddings=[
            NewEmbedding(name, name, [2.0 ** (n % 5) * x for x in direction])
            for n, name in enumerate(shuffled)
        ],
    )
    [query] = gauss(5, 1, 100)
    found = await store.embedding_index.search(scope="doc", vector=query, limit=25)
    assert [match.ref_id for match in found] == names[:25]
    assert len({match.score for match in found}) == 1


@pytest.mark.skipif(not vectors.HAS_NUMPY, reason="numpy is not installed")
async def test_search__gives_the_same_with_numpy_and_without(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = gauss(6, 500, 96)
    await store.embedding_index.upsert_many(
        scope="doc", embeddings=[NewEmbedding(str(n), "t", it) for n, it in enumerate(data)]
    )
    queries = gauss(7, 10, 96)
    with_numpy = [
        await store.embedding_index.search(scope="doc", vector=query, limit=50) for query in queries
    ]
    monkeypatch.setattr(vectors, "HAS_NUMPY", False)
    without = [
        await store.embedding_index.search(scope="doc", vector=query, limit=50) for query in queries
    ]
    assert without == with_numpy


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e30, 3e38])
async def test_search__scores_the_smallest_and_the_largest(
    store: MetadataStore, scale: float
) -> None:
    await store.embedding_index.upsert(
        scope="doc", ref_id="a", text="t", vector=[scale, scale, scale]
    )
    [match] = await store.embedding_index.search(scope="doc", vector=[scale, scale, 0])
    assert math.isclose(match.score, math.sqrt(2 / 3), abs_tol=1e-9)


@pytest.mark.parametrize("limit", [0, -1, 1001, 1.0, True])
async def test_search__refuses_a_limit(store: MetadataStore, limit: Any) -> None:
    with pytest.raises(InvalidValue) as refused:
        await store.embedding_index.search(scope="doc", vector=[1], limit=limit)
    assert refused.value.column == "limit"


@pytest.mark.parametrize("score", [math.nan, math.inf, "1"])
async def test_search__refuses_a_score(store: MetadataStore, score: Any) -> None:
    with pytest.raises(InvalidValue) as refused:
        await store.embedding_index.search(scope="doc", vector=[1], min_score=score)
    assert refused.value.column == "min_score"


@pytest.mark.usefixtures("arithmetic")
async def test_search__in_a_transaction_sees_what_it_wrote(store: MetadataStore) -> None:
    async with store.transaction() as tx:
        for ref_id in "ab":
            await tx.embedding_index.upsert(scope="doc", ref_id=ref_id, text="t", vector=[1, 2])
        found = await tx.embedding_index.search(scope="doc", vector=[1, 2])
    assert [match.ref_id for match in found] == ["a", "b"]


@pytest.mark.usefixtures("arithmetic")
async def test_search__takes_memory_for_a_block_not_for_the_scope(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "block_rows", lambda count: max(1, (64 << 10) // (4 * count)))
    dimensions = 384
    new = [
        NewEmbedding(str(n), "t", array("f", [n % 7 + 1, n % 11, 1] * 128)) for n in range(3_000)
    ]
    for start in range(0, len(new), MAX_EMBEDDINGS):
        part = new[start : start + MAX_EMBEDDINGS]
        await store.embedding_index.upsert_many(scope="doc", embeddings=part)
    tracemalloc.start()
    try:
        await store.embedding_index.search(scope="doc", vector=[1.0] * dimensions)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 3_000 * 4 * dimensions > 4 << 20
    assert peak < 1 << 20


async def test_vectors__may_be_numpy_arrays(store: MetadataStore) -> None:
    numpy = pytest.importorskip("numpy")
    for kind in ("float32", "float64", "int64"):
        row = await store.embedding_index.upsert(
            scope="doc", ref_id="a", text="t", vector=numpy.array([1, 2, 3], dtype=kind)
        )
        assert row.vector == (1.0, 2.0, 3.0)
    with pytest.raises(InvalidValue):
        await store.embedding_index.upsert(
            scope="doc", ref_id="a", text="t", vector=numpy.ones((2, 3))
        )


@pytest.mark.parametrize("sizes", [(4, 12), (12, 4), (3, 8)], ids=str)
async def test_search__names_a_vector_that_is_not_as_long_as_its_dimensions_say(
    store: MetadataStore, sizes: tuple[int, int]
) -> None:
    for scope in ("damaged", "sound"):
        for ref in ("a", "b", "c"):
            await store.embedding_index.upsert(scope=scope, ref_id=ref, text=ref, vector=[1.0, 2.0])
    raw = store._backend._writer.connection  # type: ignore[attr-defined]
    await raw.execute("PRAGMA ignore_check_constraints = ON")
    for ref, size in zip(("b", "c"), sizes, strict=True):
        # Together as long as they should be, or nearly.
        await raw.execute(
            "UPDATE embedding_index SET vector = randomblob(?) WHERE scope = 'damaged'"
            " AND ref_id = ?",
            (size, ref),
        )
    with pytest.raises(StoreCorrupt) as caught:
        await store.embedding_index.search(scope="damaged", vector=[1.0, 2.0])
    assert caught.value.row_id == "damaged/b"
    assert caught.value.column == "vector"
    assert len(await store.embedding_index.search(scope="sound", vector=[1.0, 2.0])) == 3


async def test_upsert_many__takes_a_thousand_and_no_more(store: MetadataStore) -> None:
    new = [NewEmbedding(f"r{n}", "t", [1.0, float(n)]) for n in range(MAX_EMBEDDINGS + 1)]
    with pytest.raises(InvalidValue) as refused:
        await store.embedding_index.upsert_many(scope="s", embeddings=new)
    assert (refused.value.table, refused.value.column) == ("embedding_index", "embeddings")
    assert (await store.embedding_index.search(scope="s", vector=[1.0, 1.0])) == []
    assert await store.embedding_index.upsert_many(scope="s", embeddings=new[:-1]) == 1_000


@pytest.mark.parametrize("blocks", [1, 2])
def test_nearest__ties_stand_in_the_order_of_names_however_quick_scores_round(blocks: int) -> None:
    query = vectors.encode([1.0, 2.0, 3.0])
    nearest = vectors.Nearest(query, limit=2)
    errors = {"a": -9e-10, "b": -5e-10, "c": 9e-10, "d": 5e-10}
    names = list(errors)[::-1]
    for n in range(blocks):
        block = names[n * 4 // blocks : (n + 1) * 4 // blocks]
        scores = [1 + errors[name] for name in block]
        nearest._quick = lambda *_, scores=scores: scores
        nearest.add([(name, query) for name in block])
    assert nearest.found() == [("a", 1.0), ("b", 1.0)]

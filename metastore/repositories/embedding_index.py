"""embedding_index: texts, and the vectors by which they are searched."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import msgspec

from metastore import vectors
from metastore.codec import Id, Label, Row, listed, new_id
from metastore.errors import DimensionMismatch, InvalidValue, StoreCorrupt
from metastore.paging import checked_limit
from metastore.repositories.base import TableRepository
from metastore.rows import off_loop

if TYPE_CHECKING:
    from metastore.statement_types import EmbeddingIndexStatements, UpsertEmbeddingsRow

__all__ = ["MAX_EMBEDDINGS", "Embedding", "EmbeddingIndex", "EmbeddingMatch", "NewEmbedding"]

MAX_EMBEDDINGS = 1_000
"""The most texts of one call: all or none is one transaction, which others wait for."""


class Embedding(Row, frozen=True):
    """A text with its vector.

    Attributes:
        scope: what is searched together.
        ref_id: what the text is of, in the caller's terms.
        vector: the numbers, as the float32 they are stored as.
        created_at: when this text was embedded.
    """

    id: Id
    scope: Label
    ref_id: Label
    text: str
    vector: vectors.Vector
    dimensions: Annotated[int, msgspec.Meta(ge=1)]
    created_at: datetime


class NewEmbedding(msgspec.Struct, frozen=True):
    """A text to add, with its vector."""

    ref_id: str
    text: str
    vector: Sequence[float]


class EmbeddingMatch(msgspec.Struct, frozen=True):
    """A text that a search found.

    Attributes:
        score: the cosine of the angle between its vector and the one searched for, from -1 to 1.
    """

    ref_id: str
    text: str
    score: float


class EmbeddingIndex(TableRepository[Embedding]):
    """Embedded texts, by scope. The vectors of a scope have the same dimensions."""

    table = "embedding_index"
    row_type = Embedding
    _sql: EmbeddingIndexStatements

    async def upsert(
        self, *, scope: str, ref_id: str, text: str, vector: Sequence[float]
    ) -> Embedding:
        """Add a text, or replace the one at `ref_id`, and return it.

        The vector is stored as float32.

        Raises:
            DimensionMismatch: the vectors of the scope have other dimensions.
            InvalidValue: an argument is invalid; the vector if it is empty, zero or not finite.
        """
        dimensions = vectors.dimensions(_encoded(vector))
        while True:
            row = await self._find(
                self._sql.upsert_embedding(
                    id=new_id(),
                    scope=scope,
                    ref_id=ref_id,
                    text=text,
                    vector=vector,
                    dimensions=dimensions,
                    created_at=self._now(),
                )
            )
            if row is not None:
                return row
            await self._refuse_mismatch(scope, dimensions)

    async def upsert_many(self, *, scope: str, embeddings: Iterable[NewEmbedding]) -> int:
        """Add texts or replace what their references had, all or none, and return their number.

        They are one transaction, during which others wait for the writer: at most
        `MAX_EMBEDDINGS` (1,000) at once.

        Raises:
            DimensionMismatch: the vectors of the scope, or of the call, have other dimensions.
            InvalidValue: an argument is invalid, or there are too many.
        """
        texts = listed(self.table, "embeddings", embeddings, "NewEmbedding", kind=NewEmbedding)
        if len(texts) > MAX_EMBEDDINGS:
            raise InvalidValue(
                self.table, "embeddings", f"must be at most {MAX_EMBEDDINGS} at once"
            )
        dimensions = _same_dimensions(scope, texts)
        now = self._now()
        rows: list[UpsertEmbeddingsRow] = [
            {
                "id": new_id(),
                "scope": scope,
                "ref_id": embedding.ref_id,
                "text": embedding.text,
                "vector": embedding.vector,
                "dimensions": dimensions,
                "created_at": now,
            }
            for embedding in texts
        ]
        while rows:
            answers = await self._run_all(
                self._sql.check_embedding_scope(scope=scope, dimensions=dimensions),
                self._sql.upsert_embeddings.many(rows),
            )
            if answers[0]:
                break
            await self._refuse_mismatch(scope, dimensions)
        return len(rows)

    async def get(self, *, scope: str, ref_id: str) -> Embedding:
        """Return the text and vector at `ref_id`.

        Raises:
            NotFound: the scope has none.
            InvalidValue: `scope` or `ref_id` is invalid.
        """
        return await self._one(self._sql.get_embedding(scope=scope, ref_id=ref_id), (scope, ref_id))

    async def delete(self, *, scope: str, ref_id: str) -> None:
        """Delete the text and vector at `ref_id`.

        Raises:
            NotFound: the scope has none.
            InvalidValue: `scope` or `ref_id` is invalid.
        """
        await self._one(self._sql.delete_embedding(scope=scope, ref_id=ref_id), (scope, ref_id))

    async def search(
        self,
        *,
        scope: str,
        vector: Sequence[float],
        limit: int = 10,
        min_score: float | None = None,
    ) -> list[EmbeddingMatch]:
        """Return the texts of a scope whose vectors are nearest to `vector`, the nearest first.

        Every vector of the scope is compared, by the cosine; equal scores stand in the order of
        `ref_id`, and what scores less than `min_score` is left out. The scope is read in blocks,
        so that memory does not grow with it. Outside a transaction, what others change meanwhile
        may or may not be seen.

        Raises:
            DimensionMismatch: the vectors of the scope have other dimensions.
            InvalidValue: the vector is empty, zero or not finite, or `limit` is not from 1 to
                1,000.
            StoreCorrupt: a vector of the scope is damaged.
        """
        checked_limit(limit)
        _check_score(min_score)
        query = _encoded(vector)
        dimensions = vectors.dimensions(query)
        await self._refuse_mismatch(scope, dimensions)
        nearest = vectors.Nearest(query, limit=limit, min_score=min_score)
        rows = vectors.block_rows(dimensions)
        after = ""
        while True:
            block = await self._run(
                self._sql.scan_embeddings(
                    scope=scope, dimensions=dimensions, after_ref=after, limit=rows
                )
            )
            _refuse_damaged(scope, block, len(query))
            await off_loop(nearest.add, block)
            if len(block) < rows:
                break
            after = block[-1][0]
        found = nearest.found()
        texts = await asyncio.gather(
            *(self._find(self._sql.get_embedding(scope=scope, ref_id=name)) for name, _ in found)
        )
        return [
            EmbeddingMatch(row.ref_id, row.text, score)
            for row, (_, score) in zip(texts, found, strict=True)
            if row is not None
        ]

    async def _refuse_mismatch(self, scope: str, dimensions: int) -> None:
        """Raise DimensionMismatch unless the scope is empty or its vectors are like this one."""
        expected = await self._scalar(self._sql.get_embedding_dimensions(scope=scope))
        if expected is not None and expected != dimensions:
            raise DimensionMismatch(scope, expected=expected, actual=dimensions)


def _refuse_damaged(scope: str, block: Sequence[tuple[str, bytes]], length: int) -> None:
    """Raise StoreCorrupt if a vector is not as long as its dimensions say.

    It would score wrongly, or take its neighbour's numbers.
    """
    if all(len(blob) == length for _, blob in block):
        return
    [ref_id, *_] = [name for name, blob in block if len(blob) != length]
    raise StoreCorrupt(
        f"is not a vector of {length // 4} float32 numbers",
        table="embedding_index",
        row_id=f"{scope}/{ref_id}",
        column="vector",
    )


def _encoded(vector: Sequence[float]) -> bytes:
    try:
        return vectors.encode(vector)
    except ValueError as error:
        raise InvalidValue(
            "embedding_index", "vector", str(error), value_type=type(vector).__name__
        ) from None


def _same_dimensions(scope: str, embeddings: list[NewEmbedding]) -> int:
    """Return the dimensions that all of the vectors have."""
    expected = 0
    for embedding in embeddings:
        actual = vectors.dimensions(_encoded(embedding.vector))
        expected = expected or actual
        if actual != expected:
            raise DimensionMismatch(scope, expected=expected, actual=actual)
    return expected


def _check_score(score: float | None) -> None:
    # math.isfinite raises for an integer that no float can hold.
    if score is not None and not (
        isinstance(score, float | int) and abs(score) <= sys.float_info.max
    ):
        raise InvalidValue(
            None, "min_score", "must be a finite number", value_type=type(score).__name__
        )

"""One application for each of the servers that fork, or do not: where each opens its store.

`EARLY=1` opens a store when the module is imported, which is what a server that preloads does
before it forks.
"""

from __future__ import annotations

import asyncio
import json
import os
from functools import cache
from typing import TYPE_CHECKING, Any

from metastore import MetadataStore, MetastoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

URL = os.environ["METASTORE_DB_URL"]

early_loop = asyncio.new_event_loop()
early = early_loop.run_until_complete(MetadataStore.open(URL)) if os.environ.get("EARLY") else None
stores: list[MetadataStore] = []


@cache
def loop() -> asyncio.AbstractEventLoop:
    """Return the worker's own loop: one that was made before the fork is the parent's, too."""
    return asyncio.new_event_loop()


def append() -> dict[str, Any]:
    """Append an event in this process's own store, and tell its id, or why not."""
    try:
        if not stores:
            stores.append(loop().run_until_complete(MetadataStore.open(URL)))
        return loop().run_until_complete(_append(stores[0]))
    except MetastoreError as error:
        return {"pid": os.getpid(), "error": type(error).__name__, "text": str(error)}


async def _append(store: MetadataStore) -> dict[str, Any]:
    [session] = (await store.sessions.list_recent()).items
    event = await store.events.append(session.id, "request", f"by {os.getpid()}")
    return {"pid": os.getpid(), "id": event.id}


def wsgi(_: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Answer every request with an event: for gunicorn."""
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(append()).encode()]


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer every request with an event, in a store that lives as long as the worker: uvicorn."""
    if scope["type"] == "lifespan":
        await receive()
        stores.append(await MetadataStore.open(URL))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await stores[0].close()
        await send({"type": "lifespan.shutdown.complete"})
        return
    try:
        answer = await _append(stores[0])
    except MetastoreError as error:
        answer = {"error": type(error).__name__, "text": str(error)}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

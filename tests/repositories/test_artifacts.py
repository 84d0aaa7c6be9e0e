from __future__ import annotations

from typing import Any

import pytest

from metastore import (
    AlreadyExists,
    ArtifactType,
    InvalidReference,
    InvalidValue,
    MetadataStore,
    NotFound,
    Session,
)
from metastore.codec import new_id

GOOD: dict[str, Any] = {"artifact_type": "log", "name": "out.log", "content_path": "/a/out.log"}


async def test_create__with_all_and_with_little(store: MetadataStore, session: Session) -> None:
    command = await store.commands.create(session_id=session.id, argv=["x"], working_directory="/")
    full = await store.artifacts.create(
        session_id=session.id,
        command_id=command.id,
        artifact_type=ArtifactType.JUNIT_XML,
        name="junit.xml",
        content_path="/a/junit.xml",
        size_bytes=0,
        sha256="0" * 64,
        metadata={"tests": 3},
    )
    little = await store.artifacts.create(session_id=session.id, **GOOD)
    assert (full.artifact_type, full.size_bytes, full.metadata) == ("junit_xml", 0, {"tests": 3})
    assert (little.command_id, little.size_bytes, little.sha256) == (None, None, None)
    assert await store.artifacts.get(full.id) == full
    assert (await store.artifacts.list_by_session(session.id)).items == [full, little]


async def test_lists__by_session_and_by_type(store: MetadataStore, session: Session) -> None:
    made = [
        await store.artifacts.create(
            session_id=session.id, **(GOOD | {"artifact_type": kind, "name": kind})
        )
        for kind in [*ArtifactType, "log"]
    ]
    page = await store.artifacts.list_by_session(session.id, limit=5)
    rest = await store.artifacts.list_by_session(session.id, after=page.next, limit=5)
    assert page.items + rest.items == made
    assert rest.next is None
    logs = await store.artifacts.list_by_type("log", limit=1)
    more = await store.artifacts.list_by_type("log", after=logs.next, limit=1)
    assert logs.items + more.items == [made[0], made[-1]]


@pytest.mark.parametrize(
    "values",
    [
        {"artifact_type": "video"},
        {"name": ""},
        {"name": "x" * 256},
        {"content_path": ""},
        {"size_bytes": -1},
        {"size_bytes": 2**63},
        {"sha256": "0" * 63},
        {"sha256": "Z" * 64},
        {"metadata": ["x"]},
    ],
)
async def test_create__refusals(
    store: MetadataStore, session: Session, values: dict[str, Any]
) -> None:
    with pytest.raises(InvalidValue) as refused:
        await store.artifacts.create(session_id=session.id, **(GOOD | values))
    assert [refused.value.column] == list(values)
    assert (await store.artifacts.list_by_session(session.id)).items == []


async def test_create__of_no_session_or_command(store: MetadataStore, session: Session) -> None:
    with pytest.raises(InvalidReference) as error:
        await store.artifacts.create(session_id=new_id(), **GOOD)
    assert error.value.references == "sessions"
    with pytest.raises(InvalidReference) as error:
        await store.artifacts.create(session_id=session.id, command_id=new_id(), **GOOD)
    assert error.value.references == "commands"


async def test_delete__forgets_the_row(store: MetadataStore, session: Session) -> None:
    artifact = await store.artifacts.create(session_id=session.id, **GOOD)
    kept = await store.artifacts.create(session_id=session.id, **GOOD)
    await store.artifacts.delete(artifact.id)
    for verb in (store.artifacts.get, store.artifacts.delete):
        with pytest.raises(NotFound) as missing:
            await verb(artifact.id)
        assert (missing.value.table, missing.value.key) == ("artifacts", artifact.id)
    assert (await store.artifacts.list_by_session(session.id)).items == [kept]


async def test_create__repeated_under_its_id_is_refused(
    store: MetadataStore, session: Session
) -> None:
    artifact = await store.artifacts.create(session_id=session.id, id=new_id(), **GOOD)
    with pytest.raises(AlreadyExists) as taken:
        await store.artifacts.create(session_id=session.id, id=artifact.id, **GOOD)
    assert (taken.value.table, taken.value.columns) == ("artifacts", ("id",))
    assert (await store.artifacts.list_by_session(session.id)).items == [artifact]

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from metastore import (
    AlreadyExists,
    InvalidReference,
    InvalidValue,
    MetadataStore,
    NotFound,
    Session,
)
from metastore.codec import new_id
from tests.repositories.states import check_pair, reach

VERBS: dict[str, Any] = {
    "start": lambda table, id_: table.start(id_, log_path="/logs/1.log"),
    "succeed": lambda table, id_: table.finish(id_, exit_code=0),
    "exit": lambda table, id_: table.finish(id_, exit_code=3),
    "fail": lambda table, id_: table.fail(id_, error_message="no such program"),
    "time_out": lambda table, id_: table.time_out(id_, error_message="60 s"),
    "cancel": lambda table, id_: table.cancel(id_),
}
WANTED = {
    "start": "running", "succeed": "completed", "exit": "failed", "fail": "failed",
    "time_out": "timeout", "cancel": "cancelled",
}  # fmt: skip
PATHS: dict[str, tuple[str, ...]] = {
    "pending": (),
    "running": ("start",),
    "completed": ("start", "succeed"),
    "failed": ("start", "exit"),
    "timeout": ("start", "time_out"),
    "cancelled": ("cancel",),
}
ALLOWED = {
    ("pending", "start"), ("pending", "fail"), ("pending", "cancel"),
    ("running", "succeed"), ("running", "exit"), ("running", "fail"), ("running", "time_out"),
    ("running", "cancel"),
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", PATHS)
async def test_status__every_state_and_verb(
    store: MetadataStore, session: Session, state: str, verb: str
) -> None:
    command = await store.commands.create(
        session_id=session.id, argv=["make", "test"], working_directory="/srv"
    )
    row = await reach(store.commands, VERBS, PATHS[state], command.id)
    becomes = WANTED[verb] if (state, verb) in ALLOWED else None
    moved = await check_pair(store.commands, VERBS, row, verb, becomes, WANTED[verb])
    if becomes == "running":
        assert moved.log_path == "/logs/1.log"
        assert moved.started_at is not None
        assert moved.completed_at is None
    elif becomes:
        assert moved.exit_code == {"succeed": 0, "exit": 3}.get(verb)
        assert moved.error_message == {"fail": "no such program", "time_out": "60 s"}.get(verb)
        assert moved.completed_at is not None


async def test_create__is_numbered_and_keeps_its_arguments(
    store: MetadataStore, session: Session
) -> None:
    argv = ["sh", "-c", "echo 'ä' && printf '%s' \"$X\"", ""]
    first = await store.commands.create(
        session_id=session.id, argv=tuple(argv), working_directory="/srv", log_path="/l"
    )
    second = await store.commands.create(
        session_id=session.id, argv=["true"], working_directory="/srv"
    )
    assert (first.argv, first.log_path, first.status) == (argv, "/l", "pending")
    assert (first.sequence, second.sequence) == (1, 2)
    started = await store.commands.start(first.id)
    assert started.log_path == "/l"
    page = await store.commands.list_by_session(session.id, limit=1)
    assert (page.items, page.next) == ([started], 1)
    rest = await store.commands.list_by_session(session.id, after=1)
    assert (rest.items, rest.next) == ([second], None)


@pytest.mark.parametrize(
    "values",
    [
        {"argv": []},
        {"argv": "make test"},
        {"argv": b"make"},
        {"argv": {"make": 1}},
        {"argv": 5},
        {"argv": None},
        {"argv": ["make", 5]},
        {"argv": [None]},
        {"argv": ["a\0b"]},
        {"log_path": "relative.log"},
        {"log_path": "x:y"},
        {"working_directory": ""},
        {"log_path": ""},
    ],
)
async def test_create__refusals(
    store: MetadataStore, session: Session, values: dict[str, Any]
) -> None:
    good: dict[str, Any] = {"argv": ["make"], "working_directory": "/srv"}
    with pytest.raises(InvalidValue) as refused:
        await store.commands.create(session_id=session.id, **(good | values))
    assert [refused.value.column] == list(values)
    assert (await store.commands.list_by_session(session.id)).items == []


async def test_create__of_no_session(store: MetadataStore) -> None:
    with pytest.raises(InvalidReference):
        await store.commands.create(session_id=new_id(), argv=["x"], working_directory="/")


async def test_create__racers_get_a_number_each(store: MetadataStore, session: Session) -> None:
    made = await asyncio.gather(
        *(
            store.commands.create(session_id=session.id, argv=[str(n)], working_directory="/")
            for n in range(40)
        )
    )
    assert sorted(command.sequence for command in made) == list(range(1, 41))


async def test_create__repeated_under_its_id_is_refused(
    store: MetadataStore, session: Session
) -> None:
    good: dict[str, Any] = {"session_id": session.id, "working_directory": "/", "id": new_id()}
    command = await store.commands.create(argv=["a"], **good)
    with pytest.raises(AlreadyExists) as taken:
        await store.commands.create(argv=["b"], **good)
    assert (taken.value.table, taken.value.columns) == ("commands", ("id",))
    assert (await store.commands.list_by_session(session.id)).items == [command]


@pytest.mark.parametrize("exit_code", [None, "0", 0.0, True, 1 << 63])
async def test_finish__refuses_what_is_no_exit_code(
    store: MetadataStore, session: Session, exit_code: Any
) -> None:
    command = await store.commands.create(session_id=session.id, argv=["x"], working_directory="/")
    running = await store.commands.start(command.id)
    with pytest.raises(InvalidValue) as refused:
        await store.commands.finish(command.id, exit_code=exit_code)
    assert (refused.value.table, refused.value.column) == ("commands", "exit_code")
    assert await store.commands.get(command.id) == running


async def test_finish__a_process_ended_by_a_signal_failed(
    store: MetadataStore, session: Session
) -> None:
    command = await store.commands.create(session_id=session.id, argv=["x"], working_directory="/")
    await store.commands.start(command.id)
    finished = await store.commands.finish(command.id, exit_code=-9)
    assert (finished.status, finished.exit_code) == ("failed", -9)


async def test_start__refuses_a_relative_log_path(store: MetadataStore, session: Session) -> None:
    command = await store.commands.create(session_id=session.id, argv=["x"], working_directory="/")
    with pytest.raises(InvalidValue) as refused:
        await store.commands.start(command.id, log_path="1.log")
    assert refused.value.column == "log_path"
    assert await store.commands.get(command.id) == command
    started = await store.commands.start(command.id, log_path="C:\\logs\\1.log")
    assert started.log_path == "C:\\logs\\1.log"


async def test_get__of_nothing(store: MetadataStore) -> None:
    with pytest.raises(NotFound) as missing:
        await store.commands.get(new_id())
    assert missing.value.table == "commands"

"""What `make types` has to refuse. Nothing here runs.

An error that mypy no longer finds makes its `type: ignore` unused, which is an error as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from metastore import SessionStatus, every

if TYPE_CHECKING:
    from metastore import MetadataStore
    from metastore.backends.base import Executor
    from metastore.repositories.sessions import Sessions
    from metastore.repositories.steps import Steps
    from metastore.statement_types import AppendEventsRow, EventsStatements


def misspelt_statements(steps: Steps, sessions: Sessions) -> None:
    steps._sql.get_stepp(id="")  # type: ignore[attr-defined]
    sessions._sql.get_step(id="")  # type: ignore[attr-defined]


def misspelt_parameters(steps: Steps, sessions: Sessions) -> None:
    steps._sql.get_step(idd="")  # type: ignore[call-arg]
    sessions._sql.get_session(session_id="")  # type: ignore[call-arg]


def missing_parameters(steps: Steps, sessions: Sessions) -> None:
    steps._sql.get_step()  # type: ignore[call-arg]
    sessions._sql.complete_session(id="", result={})  # type: ignore[call-arg]


def superfluous_parameters(steps: Steps, sessions: Sessions) -> None:
    steps._sql.get_step(id="", limit=1)  # type: ignore[call-arg]
    sessions._sql.get_session(id="", limit=1)  # type: ignore[call-arg]


def positional_parameters(steps: Steps, sessions: Sessions) -> None:
    steps._sql.get_step("")  # type: ignore[call-arg]
    sessions._sql.get_session("")  # type: ignore[call-arg]


def wrong_types(steps: Steps, sessions: Sessions) -> None:
    steps._sql.get_step(id=1)  # type: ignore[arg-type]
    sessions._sql.get_session(id=None)  # type: ignore[arg-type]


async def misspelt_names(store: MetadataStore) -> None:
    await store.jobs.list_by_status("planned")  # type: ignore[arg-type]
    await store.sessions.list_by_status("running")  # type: ignore[arg-type]
    await store.tasks.list_by_status("paused")  # type: ignore[arg-type]
    await store.workflows.list_by_status("Draft")  # type: ignore[arg-type]
    await store.tool_executions.list_by_status("timed_out")  # type: ignore[arg-type]
    await store.artifacts.list_by_type("logs")  # type: ignore[arg-type]
    await store.events.append("", "", "", "warn")  # type: ignore[arg-type]
    await store.sessions.create(session_type="test")  # type: ignore[arg-type]
    await store.sessions.create(session_type="debug", mode="fast")  # type: ignore[arg-type]
    await store.client_sessions.open(client_id="", connection_type="ws")  # type: ignore[arg-type]
    await store.configurations.set("", 1, "int")  # type: ignore[arg-type]
    await store.deletions.list("events")  # type: ignore[arg-type]
    await store.audit_chains.list("sessions")  # type: ignore[arg-type]
    await store.lease_waiters.list_by_resource("leases", "")  # type: ignore[arg-type]
    await store.jobs.list_by_status(SessionStatus.PENDING)  # type: ignore[arg-type]


async def wrong_arguments_of_every_page(store: MetadataStore) -> None:
    every(store.jobs.list_by_status, "planned")  # type: ignore[arg-type]
    every(store.jobs.list_by_status)  # type: ignore[call-arg]
    every(store.jobs.list_by_status, "failed", after=1)  # type: ignore[arg-type]
    every(store.jobs.get, "")  # type: ignore[arg-type]


async def wrong_rows(executor: Executor, events: EventsStatements) -> None:
    misspelt: list[AppendEventsRow] = [{"idd": ""}]  # type: ignore[typeddict-item]
    await executor.run(events.append_events.many(misspelt))
    await executor.run(events.append_events(id=""))  # type: ignore[operator]

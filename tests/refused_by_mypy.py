"""What `make types` has to refuse. Nothing here runs.

An error that mypy no longer finds makes its `type: ignore` unused, which is an error as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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


async def wrong_rows(executor: Executor, events: EventsStatements) -> None:
    misspelt: list[AppendEventsRow] = [{"idd": ""}]  # type: ignore[typeddict-item]
    await executor.run(events.append_events.many(misspelt))
    await executor.run(events.append_events(id=""))  # type: ignore[operator]

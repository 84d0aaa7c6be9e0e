"""Explains an id: what it refers to, who holds it, what depends on it, what would release it."""

from __future__ import annotations

import re
from datetime import datetime  # noqa: TC003 - msgspec reads the annotation
from typing import TYPE_CHECKING, TypeVar

import msgspec

from metastore.codec import timestamp
from metastore.errors import InvalidValue, NotFound
from metastore.leasing.limits import latest_credible_expiry
from metastore.repositories.auth_tokens import TokenStatus
from metastore.repositories.commands import CommandStatus
from metastore.repositories.lease_waiters import LeasedResource
from metastore.repositories.sessions import SessionStatus
from metastore.repositories.worktrees import WorktreeState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from metastore.repositories import RepositorySet
    from metastore.repositories.auth_tokens import AuthToken
    from metastore.repositories.commands import Command
    from metastore.repositories.project_locks import ProjectLock
    from metastore.repositories.projects import Project
    from metastore.repositories.repositories import Repository
    from metastore.repositories.sessions import Session
    from metastore.repositories.worktrees import Worktree

__all__ = ["Explanation", "explain"]

_is_id = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
_is_lease_token = re.compile(r"[0-9a-f]{32}").fullmatch

_OPEN_SESSION = {SessionStatus.PENDING, SessionStatus.IN_PROGRESS, SessionStatus.PAUSED}
_OPEN_COMMAND = {CommandStatus.PENDING, CommandStatus.RUNNING}

MOST = 1_000
"""The most rows of each kind that are read."""

Found = TypeVar("Found")


class Explanation(msgspec.Struct, frozen=True):
    """The explanation of an id.

    Attributes:
        kind: `worktree`, `lease`, `lock`, `session`, `command`, `token`, `project` or
            `repository`.
        id: the id of the explained row.
        state: its state in one word: `free`, `held` or `expired` if it can be held.
        what: what it is.
        held_by: its holder, or its last one if it expired.
        since: when it was leased, started or issued.
        until: when it expires or ended; None if neither.
        fencing_number: its current or last fencing number.
        dependents: what waits for it, runs in it or belongs to it.
        released_by: ways to release or end it, any of which suffices.
    """

    kind: str
    id: str
    state: str
    what: str
    held_by: str | None
    since: datetime | None
    until: datetime | None
    fencing_number: int | None
    dependents: list[str]
    released_by: list[str]


async def explain(repositories: RepositorySet, key: str, *, now: datetime) -> Explanation:
    """Explain an id, or the token of a lease.

    Args:
        repositories: A store.
        key: The id of a worktree, project lock, session, command, auth token, project or
            repository, or the token of a worktree's lease.
        now: The current time.

    Raises:
        NotFound: nothing has this id, or the lease is over.
        InvalidValue: `key` is not an id.
    """
    explainer = _Explainer(repositories, now)
    if _is_lease_token(key):
        worktree = await repositories.worktrees.find_by_lease_token(key)
        if worktree is not None:
            return msgspec.structs.replace(await explainer.worktree(worktree), kind="lease")
    elif _is_id(key):
        explanation = await explainer.by_id(key)
        if explanation is not None:
            return explanation
    else:
        # The value is left out: it may be a user's token, given by mistake.
        raise InvalidValue(None, "id", "must be a UUID in lower case, or the token of a lease")
    raise NotFound("the database", key)


class _Explainer:
    def __init__(self, repositories: RepositorySet, now: datetime) -> None:
        self._store = repositories
        self._now = now

    async def by_id(self, key: str) -> Explanation | None:
        return (
            await self._explained(self._store.worktrees.get, key, self.worktree)
            or await self._explained(self._store.project_locks.get, key, self.lock)
            or await self._explained(self._store.sessions.get, key, self.session)
            or await self._explained(self._store.commands.get, key, self.command)
            or await self._explained(self._store.auth_tokens.get, key, self.token)
            or await self._explained(self._store.projects.get, key, self.project)
            or await self._explained(self._store.repositories.get, key, self.repository)
        )

    async def _explained(
        self,
        get: Callable[[str], Awaitable[Found]],
        key: str,
        explain_row: Callable[[Found], Awaitable[Explanation]],
    ) -> Explanation | None:
        try:
            row = await get(key)
        except NotFound:
            return None
        return await explain_row(row)

    async def worktree(self, worktree: Worktree) -> Explanation:
        repository = await self._store.repositories.get(worktree.repository_id)
        at = f", at commit {worktree.commit_sha}" if worktree.commit_sha else ""
        state = self._state_of(worktree)
        if state == "retired":
            released_by = [f"store.worktrees.reinstate({worktree.id!r}) puts it back into use"]
        elif worktree.lease_expires_at is None:
            released_by = ["nothing: the next caller may lease it"]
        else:
            released_by = self._end_of_lease(worktree.lease_expires_at, "lease", "worktree")
        sessions = await self._store.sessions.list_open_by_worktree(worktree.id)
        return Explanation(
            kind="worktree",
            id=worktree.id,
            state=state,
            what=f"the checkout {worktree.path} of repository {repository.name!r}{at}",
            held_by=worktree.lease_owner,
            since=worktree.leased_at,
            until=worktree.lease_expires_at,
            fencing_number=worktree.version,
            dependents=[
                *(f"{_session(session)} runs in it" for session in sessions),
                *await self._queue(
                    LeasedResource.WORKTREES, repository.id, "a worktree of this repository"
                ),
            ],
            released_by=released_by,
        )

    def _state_of(self, worktree: Worktree) -> str:
        if worktree.state is WorktreeState.RETIRED:
            return "retired"
        if worktree.lease_expires_at is None:
            return "free"
        return "held" if self._runs(worktree.lease_expires_at) else "expired"

    async def lock(self, lock: ProjectLock) -> Explanation:
        project = await self._store.projects.get(lock.project_id)
        session = await self._store.sessions.get(lock.session_id)
        return Explanation(
            kind="lock",
            id=lock.id,
            state="held" if self._runs(lock.expires_at) else "expired",
            what=f"the lock of project {project.path} ({project.id})",
            held_by=_session(session),
            since=lock.acquired_at,
            until=lock.expires_at,
            fencing_number=lock.fencing_number,
            dependents=await self._queue(
                LeasedResource.PROJECT_LOCKS, project.id, "the lock of this project"
            ),
            released_by=[
                *self._end_of_lease(lock.expires_at, "lock", "project"),
                "its session or its project is deleted",
            ],
        )

    def _end_of_lease(self, until: datetime, what: str, of: str) -> list[str]:
        if self._runs(until):
            return [
                f"its holder releases the {of}",
                f"the {what} expires at {timestamp(until)}, unless its holder renews it; the next "
                "caller takes over",
            ]
        if until > self._now:
            return [
                f"nothing: no {what} lasts until {timestamp(until)}, so a wrong clock wrote that, "
                "and it counts as expired; the next caller takes over"
            ]
        return [
            f"nothing: the {what} expired at {timestamp(until)}, and guarded writes of its holder "
            "are refused; the next caller takes over"
        ]

    async def session(self, session: Session) -> Explanation:
        is_open = session.status in _OPEN_SESSION
        worktree = (
            await self._store.worktrees.get(session.worktree_id) if session.worktree_id else None
        )
        on = (
            f"project {session.project_path}"
            if session.project_path
            else f"repository {session.repository_id}"
        )
        where = f", in worktree {worktree.path} ({worktree.id})" if worktree else ""
        released_by = [f"it has ended: {session.status.value}"]
        if is_open:
            released_by = ["store.sessions.complete, fail or cancel ends it"]
        if is_open and worktree is not None and self._state_of(worktree) != "held":
            released_by.append(
                f"nobody holds its worktree ({self._state_of(worktree)}): its runner is probably "
                "dead, and the next holder of the worktree should fail the session"
            )
        return Explanation(
            kind="session",
            id=session.id,
            state=session.status.value,
            what=f"a {session.session_type.value} session on {on}{where}",
            held_by=await self._runner(session, worktree),
            since=session.created_at,
            until=session.completed_at,
            fencing_number=worktree.version if is_open and worktree else None,
            dependents=await self._belongings(session),
            released_by=released_by,
        )

    async def _runner(self, session: Session, worktree: Worktree | None) -> str | None:
        """Return who runs a session: the holder of its worktree, or else the user who opened it."""
        if session.status in _OPEN_SESSION and worktree is not None and worktree.lease_owner:
            return worktree.lease_owner
        if session.auth_token_id is not None:
            token = await self._store.auth_tokens.get(session.auth_token_id)
            return f"{token.user_name}, by token {token.token_prefix}…"
        return None

    async def _belongings(self, session: Session) -> list[str]:
        store, id_ = self._store, session.id
        locks = await store.project_locks.list_by_session(id_)
        commands = (await store.commands.list_by_session(id_, limit=MOST)).items
        steps = (await store.steps.list_by_session(id_, limit=MOST)).items
        artifacts = (await store.artifacts.list_by_session(id_, limit=MOST)).items
        return [
            *(
                f"lock {lock.id} of project {lock.project_id}, until {timestamp(lock.expires_at)}"
                for lock in locks
            ),
            *(_command(command) for command in commands if command.status in _OPEN_COMMAND),
            *(
                f"{name}: {_number(len(rows))}"
                for rows, name in (
                    (commands, "commands"),
                    (steps, "steps"),
                    (artifacts, "artifacts"),
                )
                if rows
            ),
        ]

    async def command(self, command: Command) -> Explanation:
        session = await self._store.sessions.get(command.session_id)
        worktree = (
            await self._store.worktrees.get(session.worktree_id) if session.worktree_id else None
        )
        is_open = command.status in _OPEN_COMMAND
        artifacts = await self._store.artifacts.list_by_session(session.id, limit=MOST)
        made = [artifact for artifact in artifacts.items if artifact.command_id == command.id]
        ended = f"it has ended: {command.status.value}"
        if command.exit_code is not None:
            ended += f", exit code {command.exit_code}"
        return Explanation(
            kind="command",
            id=command.id,
            state=command.status.value,
            what=f"command {command.sequence} of {_session(session)}: {' '.join(command.argv)}",
            held_by=await self._runner(session, worktree),
            since=command.started_at or command.created_at,
            until=command.completed_at,
            fencing_number=worktree.version if is_open and worktree else None,
            dependents=[f"artifact {artifact.name} ({artifact.id})" for artifact in made],
            released_by=["store.commands.finish, fail, time_out or cancel ends it"]
            if is_open
            else [ended],
        )

    async def token(self, token: AuthToken) -> Explanation:
        status = token.status(self._now)
        sessions = await self._store.sessions.count_open_by_auth_token(token.id)
        dependents = []
        if sessions:
            dependents.append(f"open sessions that it created: {sessions}")
        if token.replaced_by is not None:
            dependents.append(f"token {token.replaced_by}, which replaces it")
        if status in (TokenStatus.ACTIVE, TokenStatus.REPLACED):
            released_by = [f"`metastore admin revoke-token {token.id}` ends it at once"]
            if token.expires_at is not None:
                released_by.append(f"it expires at {timestamp(token.expires_at)}")
        else:
            released_by = [f"it no longer grants anything: {status.value}"]
        return Explanation(
            kind="token",
            id=token.id,
            state=status.value,
            what=f"the token {token.token_prefix}… ({token.name}), for "
            f"{' '.join(token.scopes) or 'identification only'}",
            held_by=token.user_name,
            since=token.created_at,
            until=token.revoked_at or token.expires_at,
            fencing_number=None,
            dependents=dependents,
            released_by=released_by,
        )

    async def project(self, project: Project) -> Explanation:
        sessions = (await self._store.sessions.list_by_project(project.path, limit=MOST)).items
        what = f"the project {project.path}"
        belongings = [
            *(f"{_session(session)} works on it" for session in sessions if _is_open(session)),
            *([f"sessions, ended or not: {_number(len(sessions))}"] if sessions else []),
        ]
        lock = await self._store.project_locks.find_by_project(project.id)
        if lock is not None:
            locked = await self.lock(lock)
            return msgspec.structs.replace(
                locked,
                kind="project",
                id=project.id,
                what=f"{what}, under lock {lock.id}",
                dependents=locked.dependents + belongings,
            )
        return Explanation(
            kind="project",
            id=project.id,
            state="free",
            what=what,
            held_by=None,
            since=project.created_at,
            until=None,
            fencing_number=None,
            dependents=belongings,
            released_by=["nothing: the next caller may lock it"],
        )

    async def repository(self, repository: Repository) -> Explanation:
        page = await self._store.worktrees.list_by_repository(repository.id, limit=MOST)
        states = [self._state_of(worktree) for worktree in page.items]
        return Explanation(
            kind="repository",
            id=repository.id,
            state="registered",
            what=f"the repository {repository.name!r}, {repository.remote_url}",
            held_by=None,
            since=repository.created_at,
            until=None,
            fencing_number=None,
            dependents=[
                *(
                    f"{state} worktrees: {_number(states.count(state))}"
                    for state in ("free", "held", "expired", "retired")
                    if state in states
                ),
                *await self._queue(
                    LeasedResource.WORKTREES, repository.id, "a worktree of this repository"
                ),
            ],
            released_by=["nothing: its worktrees are leased one by one"],
        )

    async def _queue(self, resource: LeasedResource, resource_id: str, what: str) -> list[str]:
        queue = (
            await self._store.lease_waiters.list_by_resource(resource, resource_id, limit=MOST)
        ).items
        if not queue:
            return []
        first = queue[0]
        return [
            f"queued for {what}: {_number(len(queue))}, first {first.owner} "
            f"since {timestamp(first.created_at)}"
        ]

    def _runs(self, until: datetime) -> bool:
        return self._now < until <= latest_credible_expiry(self._now)


def _is_open(session: Session) -> bool:
    return session.status in _OPEN_SESSION


def _session(session: Session) -> str:
    return f"session {session.id} ({session.session_type.value}, {session.status.value})"


def _command(command: Command) -> str:
    return f"command {command.id} ({command.status.value}): {' '.join(command.argv)}"


def _number(count: int) -> str:
    return f"{count} or more" if count >= MOST else str(count)

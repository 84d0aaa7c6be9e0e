"""The repositories, one for each table, and the set that a store and a transaction offer."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from metastore.repositories.artifacts import Artifacts
from metastore.repositories.audit_chains import AuditChains
from metastore.repositories.auth_tokens import AuthTokens
from metastore.repositories.client_sessions import ClientSessions
from metastore.repositories.commands import Commands
from metastore.repositories.configurations import Configurations
from metastore.repositories.debugger_state import DebuggerStates
from metastore.repositories.events import Events
from metastore.repositories.lease_waiters import LeaseWaiters
from metastore.repositories.project_locks import ProjectLocks
from metastore.repositories.projects import Projects
from metastore.repositories.repositories import Repositories
from metastore.repositories.sessions import Sessions
from metastore.repositories.steps import Steps
from metastore.repositories.tool_executions import ToolExecutions
from metastore.repositories.worktrees import Worktrees

if TYPE_CHECKING:
    from metastore.repositories.base import Scope

__all__ = ["RepositorySet"]


class RepositorySet:
    """One repository for each table, named as the table."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    @cached_property
    def repositories(self) -> Repositories:
        """The upstream repositories."""
        return Repositories(self._scope)

    @cached_property
    def worktrees(self) -> Worktrees:
        """The checkouts that workers lease."""
        return Worktrees(self._scope)

    @cached_property
    def projects(self) -> Projects:
        """The projects that sessions work on."""
        return Projects(self._scope)

    @cached_property
    def project_locks(self) -> ProjectLocks:
        """Who has a project to itself."""
        return ProjectLocks(self._scope)

    @cached_property
    def lease_waiters(self) -> LeaseWaiters:
        """Who waits for a worktree or a project."""
        return LeaseWaiters(self._scope)

    @cached_property
    def auth_tokens(self) -> AuthTokens:
        """The bearer tokens."""
        return AuthTokens(self._scope)

    @cached_property
    def sessions(self) -> Sessions:
        """The execution sessions."""
        return Sessions(self._scope)

    @cached_property
    def steps(self) -> Steps:
        """The steps of sessions."""
        return Steps(self._scope)

    @cached_property
    def events(self) -> Events:
        """What happened in sessions."""
        return Events(self._scope)

    @cached_property
    def commands(self) -> Commands:
        """The commands that sessions ran."""
        return Commands(self._scope)

    @cached_property
    def artifacts(self) -> Artifacts:
        """The files that sessions produced."""
        return Artifacts(self._scope)

    @cached_property
    def debugger_state(self) -> DebuggerStates:
        """The debugger checkpoints of sessions."""
        return DebuggerStates(self._scope)

    @cached_property
    def configurations(self) -> Configurations:
        """The settings, secrets among them."""
        return Configurations(self._scope)

    @cached_property
    def client_sessions(self) -> ClientSessions:
        """The connections of clients."""
        return ClientSessions(self._scope)

    @cached_property
    def tool_executions(self) -> ToolExecutions:
        """The audit log of tools."""
        return ToolExecutions(self._scope)

    @cached_property
    def audit_chains(self) -> AuditChains:
        """Whether events and tool executions are what the store wrote."""
        return AuditChains(self._scope)

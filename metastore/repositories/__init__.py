"""The repositories, one for each table, and the set that a store and a transaction offer."""

from __future__ import annotations

from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, get_type_hints

from metastore.repositories.artifacts import Artifacts
from metastore.repositories.audit_chains import AuditChains
from metastore.repositories.auth_tokens import AuthTokens
from metastore.repositories.budget_reservations import BudgetReservations
from metastore.repositories.client_sessions import ClientSessions
from metastore.repositories.commands import Commands
from metastore.repositories.configurations import Configurations
from metastore.repositories.context_metrics import ContextMetrics
from metastore.repositories.cost_entries import CostEntries
from metastore.repositories.debugger_state import DebuggerStates
from metastore.repositories.deletions import Deletions
from metastore.repositories.embedding_index import EmbeddingIndex
from metastore.repositories.events import Events
from metastore.repositories.job_steps import JobSteps
from metastore.repositories.jobs import Jobs
from metastore.repositories.leasable import LeasableRepository
from metastore.repositories.lease_limits import LeaseLimits
from metastore.repositories.lease_waiters import LeaseWaiters
from metastore.repositories.memory_files import MemoryFiles
from metastore.repositories.memory_items import MemoryItems
from metastore.repositories.memory_limits import JobMemoryLimits
from metastore.repositories.message_summaries import MessageSummaries
from metastore.repositories.project_locks import ProjectLocks
from metastore.repositories.projects import Projects
from metastore.repositories.repositories import Repositories
from metastore.repositories.sessions import Sessions
from metastore.repositories.steps import Steps
from metastore.repositories.tasks import Tasks
from metastore.repositories.tool_executions import ToolExecutions
from metastore.repositories.workflow_tasks import WorkflowTasks
from metastore.repositories.workflows import Workflows
from metastore.repositories.worktrees import Worktrees

if TYPE_CHECKING:
    from collections.abc import Iterator

    from metastore.repositories.base import Scope, TableRepository

__all__ = ["RepositorySet", "leasable", "repository_types"]


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
    def lease_limits(self) -> LeaseLimits:
        """How long anything may be held."""
        return LeaseLimits(self._scope)

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
    def deletions(self) -> Deletions:
        """What is being deleted in pieces."""
        return Deletions(self._scope)

    @cached_property
    def context_metrics(self) -> ContextMetrics:
        """How full the contexts of jobs were."""
        return ContextMetrics(self._scope)

    @cached_property
    def embedding_index(self) -> EmbeddingIndex:
        """The embedded texts."""
        return EmbeddingIndex(self._scope)

    @cached_property
    def memory_files(self) -> MemoryFiles:
        """The files that jobs keep."""
        return MemoryFiles(self._scope)

    @cached_property
    def memory_items(self) -> MemoryItems:
        """What agents noted."""
        return MemoryItems(self._scope)

    @cached_property
    def memory_limits(self) -> JobMemoryLimits:
        """How much a job may remember."""
        return JobMemoryLimits(self._scope)

    @cached_property
    def message_summaries(self) -> MessageSummaries:
        """What is left of messages."""
        return MessageSummaries(self._scope)

    @cached_property
    def jobs(self) -> Jobs:
        """The jobs of agents."""
        return Jobs(self._scope)

    @cached_property
    def job_steps(self) -> JobSteps:
        """The steps of jobs."""
        return JobSteps(self._scope)

    @cached_property
    def cost_entries(self) -> CostEntries:
        """What model calls have cost."""
        return CostEntries(self._scope)

    @cached_property
    def budget_reservations(self) -> BudgetReservations:
        """What is promised to model calls in flight."""
        return BudgetReservations(self._scope)

    @cached_property
    def tasks(self) -> Tasks:
        """The tasks that workers claim."""
        return Tasks(self._scope)

    @cached_property
    def workflows(self) -> Workflows:
        """The workflows that tasks belong to."""
        return Workflows(self._scope)

    @cached_property
    def workflow_tasks(self) -> WorkflowTasks:
        """The order of workflows' tasks."""
        return WorkflowTasks(self._scope)

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


@cache
def repository_types() -> tuple[type[TableRepository[Any]], ...]:
    """Return the type of each repository of a `RepositorySet`."""
    return tuple(
        get_type_hints(attribute.func)["return"]
        for attribute in vars(RepositorySet).values()
        if isinstance(attribute, cached_property)
    )


@cache
def _leasable_tables() -> tuple[str, ...]:
    return tuple(it.table for it in repository_types() if issubclass(it, LeasableRepository))


def leasable(repositories: RepositorySet) -> Iterator[LeasableRepository[Any, Any]]:
    """Yield the repositories whose rows are leased."""
    for table in _leasable_tables():
        yield getattr(repositories, table)

"""metastore: the metadata database of an execution service, in plain SQL."""

from metastore.audit.links import Finding
from metastore.environment import clean_environment
from metastore.errors import (
    AlreadyExists,
    BudgetExceeded,
    DimensionMismatch,
    ExportRefused,
    InvalidReference,
    InvalidTransition,
    InvalidValue,
    JobCancelled,
    LeaseLost,
    LeaseUnavailable,
    LimitExceeded,
    LimitsMismatch,
    LockHeld,
    MetastoreError,
    MigrationFailed,
    NotFound,
    OpenedBeforeFork,
    PriceUnknown,
    SchemaOutdated,
    SchemaTooNew,
    SecretKeyUnavailable,
    SecretRejected,
    StoreBusy,
    StoreClosed,
    StoreCorrupt,
    StoreFailed,
    StoreFull,
    StoreIOError,
    StoreReadOnly,
    StoreReplaced,
    TokenRejected,
    TransactionActive,
    VersionConflict,
    WrongLoop,
)
from metastore.health import Health, LeaseCount
from metastore.paging import Page, every
from metastore.repositories.artifacts import Artifact, ArtifactType
from metastore.repositories.audit_chains import AuditChain, AuditedTable, AuditReport
from metastore.repositories.auth_tokens import AuthToken, IssuedToken
from metastore.repositories.budget_reservations import Budget, BudgetReservation, Reserved
from metastore.repositories.client_sessions import ClientConnectionType, ClientSession
from metastore.repositories.commands import Command, CommandStatus
from metastore.repositories.configurations import Configuration, ConfigurationType
from metastore.repositories.context_metrics import ContextMetric, ContextTotals
from metastore.repositories.cost_entries import (
    CostDiscrepancy,
    CostEntry,
    CostSummary,
    RecordedCost,
    Totals,
)
from metastore.repositories.debugger_state import DebuggerState
from metastore.repositories.embedding_index import Embedding, EmbeddingMatch, NewEmbedding
from metastore.repositories.events import Event, EventLevel, NewEvent
from metastore.repositories.job_steps import JobStep, JobStepStatus
from metastore.repositories.jobs import Job, JobProgress, JobStatus
from metastore.repositories.lease_waiters import LeaseWaiter
from metastore.repositories.memory_files import MemoryFile, MemoryFileEntry
from metastore.repositories.memory_items import MemoryItem
from metastore.repositories.memory_limits import MemoryLimits
from metastore.repositories.message_summaries import MessageSummary
from metastore.repositories.project_locks import ProjectLock
from metastore.repositories.projects import Project
from metastore.repositories.repositories import Repository
from metastore.repositories.sessions import Session, SessionMode, SessionStatus, SessionType
from metastore.repositories.steps import Step, StepStatus
from metastore.repositories.tasks import Task, TaskLease, TaskStatus
from metastore.repositories.tool_executions import ToolExecution, ToolExecutionStatus
from metastore.repositories.workflow_tasks import WorkflowTask
from metastore.repositories.workflows import Workflow, WorkflowProgress, WorkflowStatus
from metastore.repositories.worktrees import Lease, Worktree, WorktreeState
from metastore.secrets import Secret
from metastore.store import MetadataStore, Transaction

__all__ = [
    "AlreadyExists",
    "Artifact",
    "ArtifactType",
    "AuditChain",
    "AuditReport",
    "AuditedTable",
    "AuthToken",
    "Budget",
    "BudgetExceeded",
    "BudgetReservation",
    "ClientConnectionType",
    "ClientSession",
    "Command",
    "CommandStatus",
    "Configuration",
    "ConfigurationType",
    "ContextMetric",
    "ContextTotals",
    "CostDiscrepancy",
    "CostEntry",
    "CostSummary",
    "DebuggerState",
    "DimensionMismatch",
    "Embedding",
    "EmbeddingMatch",
    "Event",
    "EventLevel",
    "ExportRefused",
    "Finding",
    "Health",
    "InvalidReference",
    "InvalidTransition",
    "InvalidValue",
    "IssuedToken",
    "Job",
    "JobCancelled",
    "JobProgress",
    "JobStatus",
    "JobStep",
    "JobStepStatus",
    "Lease",
    "LeaseCount",
    "LeaseLost",
    "LeaseUnavailable",
    "LeaseWaiter",
    "LimitExceeded",
    "LimitsMismatch",
    "LockHeld",
    "MemoryFile",
    "MemoryFileEntry",
    "MemoryItem",
    "MemoryLimits",
    "MessageSummary",
    "MetadataStore",
    "MetastoreError",
    "MigrationFailed",
    "NewEmbedding",
    "NewEvent",
    "NotFound",
    "OpenedBeforeFork",
    "Page",
    "PriceUnknown",
    "Project",
    "ProjectLock",
    "RecordedCost",
    "Repository",
    "Reserved",
    "SchemaOutdated",
    "SchemaTooNew",
    "Secret",
    "SecretKeyUnavailable",
    "SecretRejected",
    "Session",
    "SessionMode",
    "SessionStatus",
    "SessionType",
    "Step",
    "StepStatus",
    "StoreBusy",
    "StoreClosed",
    "StoreCorrupt",
    "StoreFailed",
    "StoreFull",
    "StoreIOError",
    "StoreReadOnly",
    "StoreReplaced",
    "Task",
    "TaskLease",
    "TaskStatus",
    "TokenRejected",
    "ToolExecution",
    "ToolExecutionStatus",
    "Totals",
    "Transaction",
    "TransactionActive",
    "VersionConflict",
    "Workflow",
    "WorkflowProgress",
    "WorkflowStatus",
    "WorkflowTask",
    "Worktree",
    "WorktreeState",
    "WrongLoop",
    "clean_environment",
    "every",
]

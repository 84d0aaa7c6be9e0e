"""metastore: the metadata database of an execution service, in plain SQL."""

from metastore.audit import Finding
from metastore.errors import (
    AlreadyExists,
    BudgetExceeded,
    InvalidReference,
    InvalidTransition,
    InvalidValue,
    LeaseLost,
    LeaseUnavailable,
    LockHeld,
    MetastoreError,
    MigrationFailed,
    NotFound,
    SchemaOutdated,
    SchemaTooNew,
    SecretKeyUnavailable,
    SecretRejected,
    StoreBusy,
    StoreClosed,
    StoreCorrupt,
    StoreFull,
    StoreReadOnly,
    TokenRejected,
    TransactionActive,
    VersionConflict,
)
from metastore.paging import Page
from metastore.repositories.artifacts import Artifact, ArtifactType
from metastore.repositories.audit_chains import AuditChain, AuditedTable, AuditReport
from metastore.repositories.auth_tokens import AuthToken, IssuedToken
from metastore.repositories.client_sessions import ClientConnectionType, ClientSession
from metastore.repositories.commands import Command, CommandStatus
from metastore.repositories.configurations import Configuration, ConfigurationType
from metastore.repositories.debugger_state import DebuggerState
from metastore.repositories.events import Event, EventLevel, NewEvent
from metastore.repositories.lease_waiters import LeaseWaiter
from metastore.repositories.project_locks import ProjectLock
from metastore.repositories.projects import Project
from metastore.repositories.repositories import Repository
from metastore.repositories.sessions import Session, SessionMode, SessionStatus, SessionType
from metastore.repositories.steps import Step, StepStatus
from metastore.repositories.tool_executions import ToolExecution, ToolExecutionStatus
from metastore.repositories.worktrees import Lease, Worktree, WorktreeState
from metastore.store import MetadataStore, Transaction

__all__ = [
    "AlreadyExists",
    "Artifact",
    "ArtifactType",
    "AuditChain",
    "AuditReport",
    "AuditedTable",
    "AuthToken",
    "BudgetExceeded",
    "ClientConnectionType",
    "ClientSession",
    "Command",
    "CommandStatus",
    "Configuration",
    "ConfigurationType",
    "DebuggerState",
    "Event",
    "EventLevel",
    "Finding",
    "InvalidReference",
    "InvalidTransition",
    "InvalidValue",
    "IssuedToken",
    "Lease",
    "LeaseLost",
    "LeaseUnavailable",
    "LeaseWaiter",
    "LockHeld",
    "MetadataStore",
    "MetastoreError",
    "MigrationFailed",
    "NewEvent",
    "NotFound",
    "Page",
    "Project",
    "ProjectLock",
    "Repository",
    "SchemaOutdated",
    "SchemaTooNew",
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
    "StoreFull",
    "StoreReadOnly",
    "TokenRejected",
    "ToolExecution",
    "ToolExecutionStatus",
    "Transaction",
    "TransactionActive",
    "VersionConflict",
    "Worktree",
    "WorktreeState",
]

"""The SQL of the contenders that write their own, and their row conversion."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from benchmarks.contenders.base import (
    AMOUNT_NANO_USD,
    CALL,
    CONTEXT,
    COST_NANO_USD,
    EVENT,
    MESSAGE,
    OWNER,
    TTL,
    encode_time,
    new_id,
    new_token,
    utc_now,
)

__all__ = [
    "ACQUIRE",
    "APPEND",
    "CHARGE",
    "CLAIM",
    "COMPLETE",
    "FORGET",
    "GET",
    "GET_JOB",
    "PAGE",
    "PROMISE",
    "PROMISED",
    "RECORD",
    "RELEASE",
    "RESERVE",
    "SETTLE",
    "acquire_parameters",
    "appended",
    "claim_parameters",
    "complete_parameters",
    "event",
    "event_parameters",
    "job",
    "promise_parameters",
    "record_parameters",
    "release_parameters",
    "reserve_parameters",
    "task",
    "worktree",
]

EVENT_COLUMNS = "position, id, session_id, event_type, level, message, context, created_at, hash"
WORKTREE_COLUMNS = (
    "id, repository_id, path, branch, commit_sha, environment_hashes, state, lease_owner, "
    "lease_token, leased_at, lease_expires_at, version, created_at, updated_at"
)
JOB_COLUMNS = (
    "id, task, repo_owner, repo_name, branch_base, status, budget_nano_usd, max_requests, "
    "max_minutes, model_cto, model_coder, cost_nano_usd, tokens_in, tokens_out, tokens_cached, "
    "requests_made, started_at, finished_at, cancelled, last_action, pr_links, agents_hash, "
    "created_at, updated_at"
)
TASK_COLUMNS = (
    "id, title, description, task_type, status, config, metadata, workspace_path, created_at, "
    "updated_at, started_at, completed_at, error, lease_owner, lease_token, leased_at, "
    "lease_expires_at, version"
)

# The hash is computed in the statement, by a function that is registered with the connection: that
# costs less than to read the chain's end, hash in the program and insert.
APPEND = (
    "INSERT INTO events (id, session_id, event_type, level, message, context, created_at, hash) "
    "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, metastore_sha256(coalesce((SELECT last FROM audit_chains "
    "WHERE resource = 'events' AND resource_id = ?2), ''), ?1, ?2, ?3, ?4, ?5, ?6, ?7))"
)
GET = f"SELECT {WORKTREE_COLUMNS} FROM worktrees WHERE id = ?"
PAGE = (
    f"SELECT {EVENT_COLUMNS} FROM events WHERE session_id = ? AND position > ? "
    "ORDER BY position LIMIT 50"
)
RESERVE = (
    "UPDATE worktrees SET lease_owner = ?, lease_token = ?, leased_at = ?, lease_expires_at = ?, "
    "version = version + 1, updated_at = ? WHERE id = ? AND version = ? AND state = 'ready' "
    "AND (lease_expires_at IS NULL OR lease_expires_at <= ?) "
    f"RETURNING {WORKTREE_COLUMNS}"
)
RELEASE = (
    "UPDATE worktrees SET lease_owner = NULL, lease_token = NULL, leased_at = NULL, "
    "lease_expires_at = NULL, version = version + 1, updated_at = ? WHERE id = ? AND version = ? "
    f"AND lease_owner = ? AND lease_token = ? AND lease_expires_at > ? RETURNING {WORKTREE_COLUMNS}"
)
ACQUIRE = (
    "UPDATE worktrees SET lease_owner = ?, lease_token = ?, leased_at = ?, lease_expires_at = ?, "
    "version = version + 1, updated_at = ? WHERE id = (SELECT id FROM worktrees "
    "WHERE state = 'ready' AND repository_id = ? AND coalesce(lease_expires_at, '') <= ? "
    f"ORDER BY coalesce(lease_expires_at, ''), updated_at LIMIT 1) RETURNING {WORKTREE_COLUMNS}"
)

RECORD = (
    "INSERT INTO cost_entries (id, job_id, request_id, provider, model, tokens_in, tokens_out, "
    "tokens_cached, cost_nano_usd, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (job_id, request_id) DO NOTHING"
)
SETTLE = "DELETE FROM budget_reservations WHERE job_id = ? AND request_id = ?"
CHARGE = (
    "UPDATE jobs SET cost_nano_usd = cost_nano_usd + ?, tokens_in = tokens_in + ?, "
    "tokens_out = tokens_out + ?, tokens_cached = tokens_cached + ?, "
    "requests_made = requests_made + 1, updated_at = ? WHERE id = ? "
    f"RETURNING {JOB_COLUMNS}"
)

FORGET = "DELETE FROM budget_reservations WHERE job_id = ? AND expires_at <= ?"
GET_JOB = f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = ?"
PROMISED = (
    "SELECT coalesce(sum(amount_nano_usd), 0), count(*) FROM budget_reservations "
    "WHERE job_id = ? AND expires_at > ? AND request_id <> ?"
)
PROMISE = (
    "INSERT INTO budget_reservations "
    "(id, job_id, request_id, amount_nano_usd, expires_at, created_at) VALUES (?, ?, ?, ?, ?, ?)"
)

CLAIM = (
    "UPDATE tasks SET status = 'running', started_at = ?, lease_owner = ?, lease_token = ?, "
    "leased_at = ?, lease_expires_at = ?, version = version + 1, updated_at = ? "
    "WHERE id = coalesce((SELECT id FROM tasks WHERE lease_expires_at <= ? "
    "ORDER BY lease_expires_at LIMIT 1), "
    "(SELECT id FROM tasks WHERE status = 'pending' ORDER BY created_at, id LIMIT 1)) "
    f"RETURNING {TASK_COLUMNS}"
)
COMPLETE = (
    "UPDATE tasks SET status = 'completed', completed_at = ?, lease_owner = NULL, "
    "lease_token = NULL, leased_at = NULL, lease_expires_at = NULL, updated_at = ? "
    "WHERE id = ? AND version = ? AND lease_owner = ? AND lease_token = ? "
    f"AND lease_expires_at > ? RETURNING {TASK_COLUMNS}"
)

_EVENT_NAMES = EVENT_COLUMNS.split(", ")
_WORKTREE_NAMES = WORKTREE_COLUMNS.split(", ")
_TASK_NAMES = TASK_COLUMNS.split(", ")
_TASK_TIMES = [
    "created_at",
    "updated_at",
    "started_at",
    "completed_at",
    "leased_at",
    "lease_expires_at",
]
_JOB_NAMES = JOB_COLUMNS.split(", ")


def event_parameters(
    session_id: str,
    event_type: str = EVENT,
    message: str = MESSAGE,
    level: str = "info",
    context: dict[str, Any] = CONTEXT,
) -> tuple[Any, ...]:
    """Return the parameters of APPEND."""
    now = encode_time(utc_now())
    return (new_id(), session_id, event_type, level, message, json.dumps(context), now)


def reserve_parameters(held: dict[str, Any]) -> tuple[Any, ...]:
    """Return the parameters of RESERVE."""
    moment = utc_now()
    now = encode_time(moment)
    expiry = encode_time(moment + TTL)
    return (OWNER, new_token(), now, expiry, now, held["id"], held["version"], now)


def release_parameters(held: dict[str, Any]) -> tuple[Any, ...]:
    """Return the parameters of RELEASE."""
    now = encode_time(utc_now())
    return (now, held["id"], held["version"], held["lease_owner"], held["lease_token"], now)


def acquire_parameters(repository_id: str) -> tuple[Any, ...]:
    """Return the parameters of ACQUIRE."""
    moment = utc_now()
    now = encode_time(moment)
    return (OWNER, new_token(), now, encode_time(moment + TTL), now, repository_id, now)


def appended(position: int | None, parameters: tuple[Any, ...]) -> dict[str, Any]:
    """Return a row that was just stored: the program knows all of it but position and hash."""
    row = dict(zip(_EVENT_NAMES, (position, *parameters), strict=False))
    row["context"] = CONTEXT
    row["created_at"] = datetime.fromisoformat(row["created_at"])
    return row


def claim_parameters() -> tuple[Any, ...]:
    """Return the parameters of CLAIM."""
    moment = utc_now()
    now = encode_time(moment)
    return (now, OWNER, new_token(), now, encode_time(moment + TTL), now, now)


def complete_parameters(held: dict[str, Any]) -> tuple[Any, ...]:
    """Return the parameters of COMPLETE."""
    parameters = release_parameters(held)
    return (parameters[0], *parameters)


def task(values: tuple[Any, ...]) -> dict[str, Any]:
    """Return a row of `tasks` as the program wants it."""
    row = dict(zip(_TASK_NAMES, values, strict=True))
    for column in ("config", "metadata"):
        if row[column] is not None:
            row[column] = json.loads(row[column])
    for column in _TASK_TIMES:
        if row[column] is not None:
            row[column] = datetime.fromisoformat(row[column])
    return row


def promise_parameters(job_id: str) -> tuple[tuple[Any, ...], ...]:
    """Return the parameters of FORGET, GET_JOB, PROMISED and PROMISE."""
    moment = utc_now()
    now = encode_time(moment)
    request_id = new_id()
    expiry = encode_time(moment + TTL)
    return (
        (job_id, now),
        (job_id,),
        (job_id, now, request_id),
        (new_id(), job_id, request_id, AMOUNT_NANO_USD, expiry, now),
    )


def record_parameters(job_id: str, request_id: str) -> tuple[tuple[Any, ...], ...]:
    """Return the parameters of RECORD, SETTLE and CHARGE."""
    now = encode_time(utc_now())
    tokens = (CALL["tokens_in"], CALL["tokens_out"], CALL["tokens_cached"])
    return (
        (
            new_id(),
            job_id,
            request_id,
            CALL["provider"],
            CALL["model"],
            *tokens,
            COST_NANO_USD,
            now,
        ),
        (job_id, request_id),
        (COST_NANO_USD, *tokens, now, job_id),
    )


def job(values: tuple[Any, ...]) -> dict[str, Any]:
    """Return a row of `jobs` as the program wants it."""
    row = dict(zip(_JOB_NAMES, values, strict=True))
    row["pr_links"] = json.loads(row["pr_links"])
    row["cancelled"] = bool(row["cancelled"])
    for column in ("created_at", "updated_at", "started_at", "finished_at"):
        if row[column] is not None:
            row[column] = datetime.fromisoformat(row[column])
    return row


def event(values: tuple[Any, ...]) -> dict[str, Any]:
    """Return a row of `events` as the program wants it."""
    row = dict(zip(_EVENT_NAMES, values, strict=True))
    row["context"] = json.loads(row["context"])
    row["created_at"] = datetime.fromisoformat(row["created_at"])
    return row


def worktree(values: tuple[Any, ...]) -> dict[str, Any]:
    """Return a row of `worktrees` as the program wants it."""
    row = dict(zip(_WORKTREE_NAMES, values, strict=True))
    row["environment_hashes"] = json.loads(row["environment_hashes"])
    for column in ("created_at", "updated_at"):
        row[column] = datetime.fromisoformat(row[column])
    for column in ("leased_at", "lease_expires_at"):
        if row[column] is not None:
            row[column] = datetime.fromisoformat(row[column])
    return row

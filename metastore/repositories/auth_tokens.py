"""auth_tokens: bearer tokens: who may use the service, for what, and until when.

A token is `mst_`, 40 random characters and a checksum of 6, all of them letters and digits: the
design of GitHub's tokens (github.blog, "Behind GitHub's new authentication token formats"). The
prefix lets secret scanners find one that leaked, the checksum tells a mistyped one without asking
the database, and a double click selects it whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
import secrets
import string
import zlib
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import msgspec

from metastore.codec import Id, Label, Row, duration, listed, new_id
from metastore.errors import (
    InvalidTransition,
    InvalidValue,
    StoreBusy,
    StoreFull,
    StoreIOError,
    StoreReadOnly,
    TokenRejected,
    TransactionActive,
)
from metastore.paging import DEFAULT_PAGE, Page, by_id, checked_limit
from metastore.repositories.base import TableRepository
from metastore.secrets import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn, SupportsIndex

    from metastore.statement_types import AuthTokensStatements

__all__ = [
    "ADMIN_SCOPE",
    "DEFAULT_GRACE",
    "MAX_GRACE",
    "MAX_TOKEN_TTL",
    "TOKEN_PATTERN",
    "AuthToken",
    "AuthTokens",
    "IssuedToken",
    "TokenStatus",
]

TOKEN_PATTERN = r"mst_[0-9A-Za-z]{46}"  # noqa: S105 - what tokens look like, and none itself
"""What a token looks like, as a regular expression for secret scanners."""

ADMIN_SCOPE = "*"
"""The scope that opens everything."""

MAX_TOKEN_TTL = timedelta(days=3650)
"""The longest that a token with an expiry lives. One without an expiry lives until revoked."""

DEFAULT_GRACE = timedelta(hours=1)
"""How long a replaced token goes on working, unless the rotation says otherwise."""

MAX_GRACE = timedelta(days=90)
"""The longest that a replaced token goes on working."""

NOTE_USE_EVERY = timedelta(minutes=1)
"""How often the use of a token is written down at most."""

_PREFIX = "mst_"
_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
# 238 bits, of which the 8 characters that are shown give away 48.
_RANDOM_CHARACTERS = 40
_CHECKSUM_CHARACTERS = 6
_SHOWN_CHARACTERS = 12

_is_token = re.compile(TOKEN_PATTERN).fullmatch
_is_scope = re.compile(r"[a-z0-9_-]+(?::[a-z0-9_-]+)*").fullmatch
_is_grant = re.compile(r"\*|[a-z0-9_-]+(?::[a-z0-9_-]+)*(?::\*)?").fullmatch
_MAX_SCOPE = 255


class TokenStatus(StrEnum):
    """The status of a token."""

    ACTIVE = "active"
    REPLACED = "replaced"
    EXPIRED = "expired"
    REVOKED = "revoked"


class AuthToken(Row, frozen=True):
    """What is stored of a token: everything but the token.

    Attributes:
        name: what the token is for, in its user's words.
        token_prefix: the token's first characters, by which its user recognises it.
        token_hash: the SHA-256 of the token.
        scopes: what it opens, see `allows`.
        last_used_at: when it was last used, to the minute.
        replaced_by: the token that a rotation put in its place.
    """

    id: Id
    user_name: Label
    name: Label
    token_prefix: Label
    token_hash: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    replaced_by: Id | None

    def allows(self, scope: str) -> bool:
        """Tell whether one of the token's scopes opens `scope`.

        `sessions:read` opens itself, `sessions:*` everything below `sessions` but not
        `sessions` itself, `*` everything. A token without scopes opens nothing.

        Raises:
            InvalidValue: `scope` is malformed, or has a `*`.
        """
        _check_scope(scope)
        return any(
            granted in (scope, ADMIN_SCOPE)
            or (granted.endswith(":*") and scope.startswith(granted[:-1]))
            for granted in self.scopes
        )

    def is_live(self, moment: datetime) -> bool:
        """Tell whether the token is neither revoked nor expired at `moment`."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > moment)

    def status(self, moment: datetime) -> TokenStatus:
        """Return the status of the token at `moment`; a replaced one may still be live."""
        if self.revoked_at is not None:
            return TokenStatus.REVOKED
        if not self.is_live(moment):
            return TokenStatus.EXPIRED
        return TokenStatus.ACTIVE if self.replaced_by is None else TokenStatus.REPLACED


class IssuedToken:
    """A token that was just issued: the only time that it can be read.

    Its repr hides the token, and it is not pickled or copied.
    """

    __slots__ = ("_token", "record")

    def __init__(self, token: str, record: AuthToken) -> None:
        self._token = token
        self.record = record

    @property
    def token(self) -> str:
        """The token itself, to be handed to its user and kept nowhere."""
        return self._token

    def __repr__(self) -> str:
        return f"IssuedToken(token='{self.record.token_prefix}…', record={self.record!r})"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("an issued token is not pickled: it holds a secret")


class AuthTokens(TableRepository[AuthToken]):
    """The bearer tokens."""

    table = "auth_tokens"
    row_type = AuthToken
    _sql: AuthTokensStatements

    async def issue(
        self,
        *,
        user_name: str,
        name: str,
        scopes: Iterable[str] = (),
        ttl: timedelta | None = None,
        id: Id | None = None,
    ) -> IssuedToken:
        """Issue a token for a user; `name` says what it is for.

        Without `scopes` it says who its user is and opens nothing, without `ttl` it lives until
        it is revoked.

        Raises:
            AlreadyExists: a token has this `id`.
            InvalidValue: an argument is invalid; a scope is of the form `sessions:read`,
                `sessions:*` or `*`.
        """
        secret = _Secret()
        now = self._now()
        record = await self._created(
            self._sql.create_auth_token(
                id=self._id(id),
                user_name=user_name,
                name=name,
                token_prefix=secret.prefix,
                token_hash=secret.hash,
                scopes=_granted(scopes),
                created_at=now,
                expires_at=_expiry(now, ttl),
            )
        )
        return IssuedToken(secret.token, record)

    async def bootstrap(
        self, *, user_name: str = "admin", name: str = "bootstrap", ttl: timedelta | None = None
    ) -> IssuedToken | None:
        """Issue a token for everything, or return None if a live one exists.

        Of any number of callers at once, in any processes, one gets a token.

        Raises:
            InvalidValue: an argument is invalid.
        """
        secret = _Secret()
        now = self._now()
        record = await self._find(
            self._sql.bootstrap_token(
                id=new_id(),
                user_name=user_name,
                name=name,
                token_prefix=secret.prefix,
                token_hash=secret.hash,
                scopes=[ADMIN_SCOPE],
                created_at=now,
                expires_at=_expiry(now, ttl),
            )
        )
        return None if record is None else IssuedToken(secret.token, record)

    async def get(self, token_id: Id) -> AuthToken:
        """Return what is stored of a token.

        Raises:
            NotFound: no token has this id.
            InvalidValue: `token_id` is not a valid id.
        """
        return await self._one(self._sql.get_auth_token(id=token_id), token_id)

    async def verify(self, token: str | Secret[str], scope: str | None = None) -> AuthToken:
        """Return the record of a live token that opens `scope`.

        With `scope` None the token only says who its user is. A mistyped token is refused
        without asking the database. The use is recorded in `last_used_at` at most once a
        minute, and not at all while the store takes no writes: that locks nobody out. In a
        `Secret` the token stays out of the tracebacks of its callers.

        Raises:
            TokenRejected: the token opens nothing of the kind. Whether it is mistyped, unknown,
                expired, revoked or lacks the scope is not revealed.
            InvalidValue: `scope` is malformed, or has a `*`.
        """
        token_hash = _hash_if_well_formed(token.reveal() if isinstance(token, Secret) else token)
        # Tracebacks may show the variables of their frames.
        del token
        if scope is not None:
            _check_scope(scope)
        if token_hash is not None:
            record = await self._find(self._sql.find_auth_token_by_hash(token_hash=token_hash))
            now = self._now()
            if (
                record is not None
                and hmac.compare_digest(record.token_hash, token_hash)
                and record.is_live(now)
                and (scope is None or record.allows(scope))
            ):
                return await self._used(record, now)
        raise TokenRejected(scope)

    async def _used(self, record: AuthToken, now: datetime) -> AuthToken:
        """Note that a token is in use, unless that was noted a moment ago."""
        unused_since = now - NOTE_USE_EVERY
        if record.last_used_at is not None and record.last_used_at > unused_since:
            return record
        # Inside a caller's transaction the store cannot write. Verifying there must not fail once
        # a minute.
        with contextlib.suppress(
            StoreBusy, StoreFull, StoreIOError, StoreReadOnly, TransactionActive
        ):
            noted = await self._find(
                self._sql.touch_auth_token(
                    id=record.id, last_used_at=now, unused_since=unused_since
                )
            )
            return noted or record
        return record

    async def rotate(self, token_id: Id, *, grace: timedelta = DEFAULT_GRACE) -> IssuedToken:
        """Issue a token in place of another, which goes on working for `grace`.

        The new token has the user, name and scopes of the old one, and as long to live as that
        had from its issue. The old one expires after `grace`, or earlier if it would have; with
        a grace of zero at once. If the answer is lost, so is the new token: rotate that one,
        which the old one names in `replaced_by`.

        Raises:
            NotFound: there is no token with this id.
            InvalidTransition: it is revoked, expired or already replaced.
            InvalidValue: `grace` is negative or longer than `MAX_GRACE`.
        """
        if not isinstance(grace, timedelta) or grace != timedelta(0):
            duration("grace", grace, longest=MAX_GRACE)
        # What the new token takes over never changes while the old one can be replaced.
        old = await self.get(token_id)
        secret = _Secret()
        now = self._now()
        answers = await self._run_all(
            self._sql.create_auth_token(
                id=(replacement_id := new_id()),
                user_name=old.user_name,
                name=old.name,
                token_prefix=secret.prefix,
                token_hash=secret.hash,
                scopes=old.scopes,
                created_at=now,
                expires_at=old.expires_at and now + (old.expires_at - old.created_at),
            ),
            self._sql.replace_auth_token(
                id=token_id, replaced_by=replacement_id, expires_at=now + grace, now=now
            ),
        )
        if not answers[-1]:
            current = await self.get(token_id)
            raise InvalidTransition(self.table, current.status(now), TokenStatus.REPLACED, current)
        [record] = self._decode(answers[0])
        return IssuedToken(secret.token, record)

    async def revoke(self, token_id: Id) -> AuthToken:
        """End a token for good and return its record. Repeating it changes nothing.

        Raises:
            NotFound: no token has this id.
            InvalidValue: `token_id` is not a valid id.
        """
        return await self._one(
            self._sql.revoke_auth_token(id=token_id, revoked_at=self._now()), token_id
        )

    async def list(
        self, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[AuthToken, str]:
        """Return a page of the tokens, live or not, in the order in which they were issued.

        Raises:
            InvalidValue: `after` or `limit` is invalid.
        """
        call = self._sql.list_auth_tokens(after_id=after, limit=checked_limit(limit))
        return await self._page(call, limit, by_id)

    async def list_by_user(
        self, user_name: str, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[AuthToken, str]:
        """Return a page of one user's tokens, live or not, in the order of their issue.

        Raises:
            InvalidValue: `user_name`, `after` or `limit` is invalid.
        """
        call = self._sql.list_auth_tokens_by_user(
            user_name=user_name, after_id=after, limit=checked_limit(limit)
        )
        return await self._page(call, limit, by_id)


class _Secret:
    """A random token, until it is handed out. Its repr hides it, for tracebacks show variables."""

    __slots__ = ("hash", "prefix", "token")

    def __init__(self) -> None:
        body = _PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_CHARACTERS))
        self.token = body + _checksum(body)
        self.prefix = self.token[:_SHOWN_CHARACTERS]
        self.hash = _hash(self.token)

    def __repr__(self) -> str:
        return f"<token {self.prefix}…>"


def _checksum(body: str) -> str:
    """Return the CRC-32 of `body` in base 62: it differs after any typing error of a character."""
    rest = zlib.crc32(body.encode())
    digits = []
    for _ in range(_CHECKSUM_CHARACTERS):
        rest, digit = divmod(rest, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def _hash(token: str) -> str:
    # The token is as random as a key, so that a slow hash would protect nothing more.
    return hashlib.sha256(token.encode()).hexdigest()


def _hash_if_well_formed(token: object) -> str | None:
    """Return the hash of what looks like a token and has the right checksum, else None."""
    if not isinstance(token, str) or _is_token(token) is None:
        return None
    if _checksum(token[:-_CHECKSUM_CHARACTERS]) != token[-_CHECKSUM_CHARACTERS:]:
        return None
    return _hash(token)


def _check_scope(scope: object) -> None:
    if not isinstance(scope, str) or _is_scope(scope) is None:
        raise InvalidValue(
            None, "scope", "must be of the form sessions:read", value_type=type(scope).__name__
        )


def _granted(scopes: Iterable[str]) -> list[str]:
    """Return the scopes to grant.

    Raises:
        InvalidValue: they are one text, or one of them is malformed.
    """
    granted = listed("auth_tokens", "scopes", scopes, "scopes")
    for scope in granted:
        if not isinstance(scope, str) or len(scope) > _MAX_SCOPE or _is_grant(scope) is None:
            raise InvalidValue(
                "auth_tokens",
                "scopes",
                "must be of the form sessions:read, sessions:* or *",
                value_type=type(scope).__name__,
            )
    return granted


def _expiry(now: datetime, ttl: timedelta | None) -> datetime | None:
    return None if ttl is None else now + duration("ttl", ttl, longest=MAX_TOKEN_TTL)

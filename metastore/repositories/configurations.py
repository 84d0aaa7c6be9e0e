"""configurations: typed settings by key, secrets among them."""

from __future__ import annotations

import json
import tomllib
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import msgspec

from metastore import codec, secrets
from metastore.codec import Id, Label, Row, new_id
from metastore.errors import (
    InvalidValue,
    NotFound,
    SecretKeyUnavailable,
    SecretRejected,
    StoreCorrupt,
    VersionConflict,
)
from metastore.paging import DEFAULT_PAGE, Page, checked_limit, every, page_of
from metastore.repositories.base import TableRepository
from metastore.secrets import Secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from metastore.backends.base import Columns, Values
    from metastore.statement_types import ConfigurationsStatements
    from metastore.statements import Call

__all__ = [
    "HIDDEN",
    "Configuration",
    "ConfigurationType",
    "ConfigurationTypeName",
    "Configurations",
]

HIDDEN = "********"
"""What a row shows in place of a secret's value."""

Format = Literal["toml", "json"]

_FIELDS = {"value", "value_type", "description"}
"""What a document may say of a key."""


class ConfigurationType(StrEnum):
    """What a value is in Python: str, int, float, bool, or what JSON can hold."""

    STRING = "string"
    INTEGER = "integer"
    FLOAT = "float"
    BOOLEAN = "boolean"
    JSON = "json"


ConfigurationTypeName = Literal["string", "integer", "float", "boolean", "json"]
"""The same as text, so that a type checker sees a misspelt one."""


class Configuration(Row, frozen=True):
    """A setting.

    Attributes:
        value: its text, as the column holds it; `HIDDEN` if it is a secret.
        version: grows with every change of the value.
        secret_key_id: the fingerprint of the key that a secret is encrypted under.
        incarnation: tells a secret from others that its key had before it was deleted.
    """

    key: Label
    value: str
    value_type: ConfigurationType
    description: str | None
    is_secret: bool
    version: Annotated[int, msgspec.Meta(ge=1)]
    secret_key_id: str | None
    created_at: datetime
    updated_at: datetime
    incarnation: Id | None


class Configurations(TableRepository[Configuration]):
    """The settings."""

    table = "configurations"
    row_type = Configuration
    key = ("key",)
    _sql: ConfigurationsStatements

    @classmethod
    def inspector(cls, columns: Columns) -> codec.Inspector:
        """Return what is wrong with a row: also that its value is not of its type."""
        flaw_of = super().inspector(columns)
        decode = codec.decoder(cls.row_type, columns, table=cls.table, key=cls.key)

        def inspect(values: Values) -> StoreCorrupt | None:
            flaw = flaw_of(values)
            if flaw is not None:
                return flaw
            [row] = decode([values])
            try:
                if not row.is_secret:
                    _value(row, row.value)
            except StoreCorrupt as damage:
                return damage
            return None

        return inspect

    async def set(
        self,
        key: str,
        value: Any,
        value_type: ConfigurationType | ConfigurationTypeName | None = None,
        description: str | None = None,
        is_secret: bool = False,
        *,
        if_version: int | None = None,
    ) -> Configuration:
        """Set the value of a key and return its row, in which a secret is hidden.

        Without `description` the existing one stays. A secret stays a secret: to make it a plain
        value, delete it first.

        Args:
            key: 1 to 255 characters.
            value: what `value` or `reveal` returns; a secret may be wrapped in a `Secret`, which
                keeps it out of the tracebacks of its callers.
            value_type: a `ConfigurationType`; None takes it from the type of `value`.
            description: what it is for.
            is_secret: Whether it is encrypted, and shown by `reveal` only.
            if_version: the version that the caller has read; 0 if there must be none yet.

        Raises:
            VersionConflict: the key is not at `if_version`; carries the row as it is now, or None.
            InvalidValue: an argument is invalid, or the key or `value` is a secret and `is_secret`
                is not set.
            SecretKeyUnavailable: there is no key to encrypt a secret with, or none that the
                database's secrets are encrypted under: they would not all open under one keyring.
        """
        codec.expect("is_secret", is_secret, bool, "a boolean")
        if if_version is not None:
            codec.expect("if_version", if_version, int, "an integer")
        is_wrapped = isinstance(value, Secret)
        held: Secret[Any] = value if is_wrapped else Secret(value)
        # Tracebacks may show the variables of their frames.
        del value
        if is_wrapped and not is_secret:
            raise InvalidValue(self.table, "is_secret", "must be set to store a Secret")
        kind, text = _encoded(held, value_type, is_secret=is_secret)
        keys = secrets.keyring() if is_secret else None
        known_key_id = keys.newest if keys else None
        while True:
            current = await self._find(self._sql.get_configuration(key=key))
            if if_version is not None and if_version != (current.version if current else 0):
                raise VersionConflict(self.table, if_version, current and _hidden(current))
            call = self._write(current, key, text, kind, description, keys, known_key_id)
            row = await self._find(call)
            if row is not None:
                if current is not None and current.is_secret:
                    await self._erase()
                return _hidden(row)
            if keys is not None:
                known_key_id = await self._known_key_id(keys)

    async def value(self, key: str) -> Any:
        """Return the value of a key, of the Python type that it was set with.

        Raises:
            NotFound: the key has no value.
            InvalidValue: it is a secret, which only `reveal` returns.
        """
        row = await self._one(self._sql.get_configuration(key=key), key)
        if row.is_secret:
            raise InvalidValue(self.table, "key", "names a secret, which only reveal returns")
        return _value(row, row.value)

    async def get(self, key: str) -> Configuration:
        """Return the row of a key, in which a secret is hidden.

        Raises:
            NotFound: the key has no value.
            InvalidValue: `key` is invalid.
        """
        return _hidden(await self._one(self._sql.get_configuration(key=key), key))

    async def list(
        self, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[Configuration, str]:
        """Return a page of the settings in the order of their keys; secrets are hidden.

        Raises:
            InvalidValue: `after` or `limit` is invalid.
        """
        rows = await self._all(
            self._sql.list_configurations(after_key=after, limit=checked_limit(limit))
        )
        return page_of([_hidden(row) for row in rows], limit, lambda row: row.key)

    async def reveal(self, key: str) -> Any:
        """Return the value of a secret, decrypted.

        Raises:
            NotFound: the key has no value.
            InvalidValue: it is no secret. Whoever can write the database can make it a plain value
                of their own, which `value` returns and this does not.
            SecretKeyUnavailable: the key that it is encrypted under is not there.
            SecretRejected: its ciphertext was altered, or comes from elsewhere.
        """
        row = await self._one(self._sql.get_configuration(key=key), key)
        if not row.is_secret:
            raise InvalidValue(self.table, "key", "names a plain value, which only value returns")
        return _decoded_secret(row, _opened(row, secrets.keyring()))

    async def delete(self, key: str) -> None:
        """Delete a key. If it is set again, its versions start at 1.

        Nothing of a secret is left in the log, unless another process reads the database all the
        while; within a transaction from its commit on.

        Raises:
            NotFound: it has no value.
            InvalidValue: `key` is invalid.
        """
        answers = await self._run_all(
            self._sql.overwrite_secret_configuration(key=key),
            self._sql.delete_configuration(key=key),
        )
        rows = self._decode(answers[-1])
        if not rows:
            raise NotFound(self.table, key)
        if rows[0].is_secret:
            await self._erase()

    async def rotate_keys(self, *, batch: int = 100) -> int:
        """Encrypt every secret under the newest key that is not, and return how many there were.

        It commits batch by batch, so that an interrupted rotation resumes where it stopped. If a
        secret cannot be decrypted, it is left as it is, and the error raised after the others.

        Raises:
            InvalidValue: `batch` is not the size of a page.
            SecretKeyUnavailable: there is no key, or one that a secret is encrypted under is
                missing.
            SecretRejected: a ciphertext was altered, or comes from elsewhere.
        """
        limit = checked_limit(batch, "batch")
        keys = secrets.keyring()
        rotated, after = 0, ""
        failed: SecretKeyUnavailable | SecretRejected | None = None
        while True:
            rows = await self._all(
                self._sql.list_secret_configurations(after_key=after, limit=limit)
            )
            calls = []
            for row in rows[:batch]:
                if row.secret_key_id == keys.newest and row.incarnation is not None:
                    continue
                incarnation = row.incarnation or new_id()
                place = _place(row.key, row.version, row.value_type, incarnation)
                try:
                    sealed = keys.seal(_opened(row, keys), place)
                except (SecretKeyUnavailable, SecretRejected) as error:
                    failed = failed or error
                    continue
                calls.append(
                    self._sql.reencrypt_configuration(
                        key=row.key,
                        value=sealed,
                        version=row.version,
                        secret_key_id=keys.newest,
                        incarnation=incarnation,
                        updated_at=self._now(),
                    )
                )
            if calls:
                await self._run_all(*calls)
                rotated += len(calls)
            if len(rows) <= batch:
                break
            after = rows[batch - 1].key
        if rotated:
            # What the old keys open goes with them.
            await self._erase()
        if failed is not None:
            raise failed
        return rotated

    async def dump(self, form: Format = "toml") -> str:
        """Return every setting but the secrets as one document, which `load` takes.

        Raises:
            InvalidValue: `form` is invalid.
        """
        _check_format(form)
        document: dict[str, dict[str, Any]] = {}
        async for row in every(self.list):
            if not row.is_secret:
                document[row.key] = _entry(row, form)
        if form == "json":
            return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"
        import tomli_w

        return tomli_w.dumps(document)

    async def load(self, document: str, form: Format = "toml") -> int:
        """Set every key of a document, all or none, and return how many values changed.

        Each key has a table of `value`, and if need be `value_type` and `description`; or the
        value alone, where that is text, a number or a boolean.

        Raises:
            InvalidValue: the document is malformed, a value is refused, or a key is a secret.
        """
        entries = [_read_entry(key, entry, form) for key, entry in _parsed(document, form).items()]
        while True:
            calls = []
            for key, kind, text, description in entries:
                current = await self._find(self._sql.get_configuration(key=key))
                if current is None or _differs(current, kind, text, description):
                    calls.append(self._write(current, key, text, kind, description, None))
            if not calls:
                return 0
            answers = await self._run_all(*calls)
            if len(answers) == len(calls) and answers[-1]:
                return len(calls)

    def _write(
        self,
        current: Configuration | None,
        key: str,
        text: Secret[str],
        kind: ConfigurationType,
        description: str | None,
        keys: secrets.Keyring | None,
        known_key_id: Id | None = None,
    ) -> Call:
        """Return the statement that makes the version behind `current`."""
        if current is not None and current.is_secret and keys is None:
            raise InvalidValue(
                self.table, "is_secret", "must be set: the key is a secret; delete it first if not"
            )
        version = current.version + 1 if current else 1
        incarnation = None if current is None else current.incarnation
        if keys is not None:
            incarnation = incarnation or new_id()
            value = keys.seal(text, _place(key, version, kind, incarnation))
        else:
            value = text.reveal()
        secret_key_id = keys.newest if keys else None
        if current is None:
            return self._sql.create_configuration(
                key=key,
                value=value,
                value_type=kind,
                description=description,
                is_secret=keys is not None,
                secret_key_id=secret_key_id,
                incarnation=incarnation,
                known_key_id=known_key_id,
                created_at=self._now(),
            )
        return self._sql.update_configuration(
            key=key,
            value=value,
            value_type=kind,
            description=description,
            is_secret=keys is not None,
            version=version,
            secret_key_id=secret_key_id,
            incarnation=incarnation,
            known_key_id=known_key_id,
            updated_at=self._now(),
        )

    async def _known_key_id(self, keys: secrets.Keyring) -> str:
        """Return which of `keys` shows that they belong to this database: any, if it has no secret.

        Raises:
            SecretKeyUnavailable: it has secrets, and none under one of these keys.
        """
        used = [key_id for [key_id] in await self._run(self._sql.list_secret_key_ids())]
        for key_id in used:
            if key_id in keys:
                return str(key_id)
        if used:
            raise SecretKeyUnavailable(
                "the database's secrets are encrypted under other keys than those given, the "
                f"first of them under key {used[0]}; give that too, or delete what no longer opens",
                key_id=used[0],
            )
        return keys.newest

    async def _erase(self) -> None:
        """Take what was deleted or overwritten out of the log too."""
        await self._scope.executor.erase()


def _place(
    key: str, version: int, kind: ConfigurationType, incarnation: str | None
) -> tuple[str, ...]:
    """Return what a secret's ciphertext is bound to."""
    place = ("configurations", key, str(version), kind.value)
    # Sealed before there were incarnations.
    return place if incarnation is None else (*place, incarnation)


def _opened(row: Configuration, keys: secrets.Keyring) -> Secret[str]:
    place = _place(row.key, row.version, row.value_type, row.incarnation)
    return keys.open(row.value, row.secret_key_id or "", place)


def _decoded_secret(row: Configuration, text: Secret[str]) -> Any:
    """Return a secret's value.

    Raises:
        SecretRejected: the text is not of the row's type.
    """
    try:
        return _decoded(row.value_type, text.reveal())
    except ValueError:
        pass
    # Outside of the handler, which knows the text.
    raise SecretRejected(row.secret_key_id or "")


def _hidden(row: Configuration) -> Configuration:
    return msgspec.structs.replace(row, value=HIDDEN) if row.is_secret else row


_TEXT: Callable[[Any], str] = codec.text_encoder()
_INTEGER = codec.integer_encoder()
_JSON: Callable[[Any], str] = codec.json_encoder(None)


def _inferred(value: Any) -> ConfigurationType:
    if isinstance(value, bool):
        return ConfigurationType.BOOLEAN
    if isinstance(value, str):
        return ConfigurationType.STRING
    if isinstance(value, int):
        return ConfigurationType.INTEGER
    if isinstance(value, float):
        return ConfigurationType.FLOAT
    return ConfigurationType.JSON


def _encoded(
    value: Secret[Any], value_type: str | None, *, is_secret: bool
) -> tuple[ConfigurationType, Secret[str]]:
    """Return a value's type and text.

    Raises:
        InvalidValue: the type is none, or not the value's.
    """
    try:
        if value_type is not None and not isinstance(value_type, str):
            raise ValueError  # the enumeration would compare with whatever it is
        kind = _inferred(value.reveal()) if value_type is None else ConfigurationType(value_type)
    except ValueError:
        raise InvalidValue(
            Configurations.table,
            "value_type",
            f"must be one of {', '.join(ConfigurationType)}",
            value_type=type(value_type).__name__,
        ) from None
    reason = None
    try:
        return kind, Secret(_text(kind, value.reveal()))
    except codec.RefusedError as refused:
        reason = str(refused)
    # Outside of the handler: what went wrong while encoding may hold the value.
    if is_secret:
        reason = f"is refused as {kind.value}"
    kind_of_value = type(value.reveal()).__name__
    raise InvalidValue(Configurations.table, "value", reason, value_type=kind_of_value)


def _text(kind: ConfigurationType, value: Any) -> str:
    match kind:
        case ConfigurationType.STRING:
            return _TEXT(value)
        case ConfigurationType.INTEGER:
            return str(_INTEGER(value))
        case ConfigurationType.FLOAT:
            return repr(codec.real(value))
        case ConfigurationType.BOOLEAN:
            if not isinstance(value, bool):
                raise codec.RefusedError("must be a boolean")
            return "true" if value else "false"
        case ConfigurationType.JSON:
            return _JSON(value)


def _value(row: Configuration, text: str) -> Any:
    """Return the value of a setting from its text.

    Raises:
        StoreCorrupt: the text is not of the setting's type.
    """
    try:
        return _decoded(row.value_type, text)
    except (ValueError, RecursionError, msgspec.MsgspecError):
        damage = _damaged(row)
    # Outside the handler: what went wrong while decoding quotes the value.
    raise damage


def _damaged(row: Configuration) -> StoreCorrupt:
    return StoreCorrupt(
        f"is not of the type {row.value_type.value}",
        table=Configurations.table,
        row_id=row.key,
        column="value",
    )


def _decoded(kind: ConfigurationType, text: str) -> Any:
    match kind:
        case ConfigurationType.STRING:
            return text
        case ConfigurationType.INTEGER:
            return int(text)
        case ConfigurationType.FLOAT:
            return float(text)
        case ConfigurationType.BOOLEAN:
            return msgspec.json.decode(text, type=bool)
        case ConfigurationType.JSON:
            return msgspec.json.decode(text)


def _entry(row: Configuration, form: Format) -> dict[str, Any]:
    """Return what a document says of a setting."""
    # TOML has no null, so that JSON stays text in it.
    as_text = form == "toml" and row.value_type is ConfigurationType.JSON
    value = _value(row, row.value)
    entry = {
        "value": row.value if as_text else value,
        "value_type": row.value_type.value,
    }
    return entry if row.description is None else entry | {"description": row.description}


def _check_format(form: Format) -> None:
    if not isinstance(form, str) or form not in get_args(Format):
        raise InvalidValue(
            None,
            "form",
            f"must be one of {', '.join(get_args(Format))}",
            value_type=type(form).__name__,
        )


def _parsed(document: str, form: Format) -> dict[str, Any]:
    _check_format(form)
    codec.expect("document", document, str, "text")
    try:
        parsed = tomllib.loads(document) if form == "toml" else json.loads(document)
    except (ValueError, RecursionError) as error:
        raise InvalidValue(None, "document", f"is no {form.upper()}: {error}") from None
    if not isinstance(parsed, dict):
        raise InvalidValue(None, "document", "must be an object of settings by key")
    return parsed


def _read_entry(
    key: str, entry: Any, form: Format
) -> tuple[str, ConfigurationType, Secret[str], str | None]:
    if not isinstance(entry, dict):
        entry = {"value": entry}
    if "value" not in entry or not entry.keys() <= _FIELDS:
        raise InvalidValue(
            None, f"document: {key!r}", f"must hold value, and of {sorted(_FIELDS)} no others"
        )
    value, value_type = entry["value"], entry.get("value_type")
    if form == "toml" and value_type == ConfigurationType.JSON and isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise InvalidValue(None, f"document: {key!r}", "must hold JSON as text") from None
    kind, text = _encoded(Secret(value), value_type, is_secret=False)
    return key, kind, text, entry.get("description")


def _differs(
    row: Configuration, kind: ConfigurationType, text: Secret[str], description: str | None
) -> bool:
    return (
        row.is_secret
        or (row.value_type, row.value) != (kind, text.reveal())
        or description not in (None, row.description)
    )

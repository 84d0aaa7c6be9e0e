"""Python values to column values and back.

A row type's annotations say what its columns hold, and both directions are derived from them: a
statement's parameter that is named as a column takes that column's type. A value is refused here,
before it is queued, unless it comes back equal. How the database holds it is the backend's to say,
see `metastore.backends.base.Columns`.

| annotation | value |
|---|---|
| `str`, with `msgspec.Meta` for length and pattern | text |
| `int`, with `msgspec.Meta` for bounds, `bool`, `float` | 64 bits, a boolean, finite |
| `datetime` | a time with a zone, to the millisecond |
| a `StrEnum` | one of its members, or the text of one |
| `dict[...]`, `list[...]`, `Any` | JSON of that shape |
| `bytes` | bytes |
| `tuple[float, ...]` | a vector of float32, see `metastore.vectors` |
| any of them `| None` | the same, or NULL |
"""

from __future__ import annotations

import contextlib
import math
import re
import types
import typing
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union, get_args, get_origin

import msgspec
from uuid_utils import uuid7

from metastore import vectors
from metastore.errors import InvalidValue, StoreCorrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

    from metastore.backends.base import Columns

__all__ = [
    "FIRST_ID",
    "MAX_JSON",
    "MAX_JSON_DEPTH",
    "MAX_TEXT",
    "Encoder",
    "Id",
    "Inspector",
    "JsonObject",
    "Label",
    "RefusedError",
    "Row",
    "Seconds",
    "decoder",
    "duration",
    "encoder",
    "expect",
    "inspector",
    "integer_encoder",
    "json_encoder",
    "listed",
    "new_id",
    "parameter_encoders",
    "real",
    "text_encoder",
    "timestamp",
]

MAX_TEXT = 1 << 20
"""The longest text of a column, in characters, unless its type says less."""

MAX_JSON = 8 << 20
"""The longest JSON document of a column, in bytes."""

MAX_JSON_DEPTH = 128
"""How deep a JSON document may be nested. Parsers recurse, ours until the caller's stack is full: a
deeper document could be written in one place and not be read in another."""

MAX_BLOB = 64 << 20
"""The longest bytes of a column."""

_MIN_INTEGER = -(1 << 63)
_MAX_INTEGER = (1 << 63) - 1
_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")

Id = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(?!0{8}(?:-0{4}){3}-0{12})[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
        description="a UUID in canonical lower-case text, and not the nil UUID",
    ),
]
"""A UUID in canonical lower-case text. Ours are version 7, so that they sort by time; those of
other versions are listed in the order of their text. Lists by id begin after the nil UUID, and
would not show a row with that id."""

Label = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
"""A name of 1 to 255 characters."""

JsonObject = dict[str, Any]
"""A JSON object."""

Seconds = float
"""A time span in seconds."""


class Row(msgspec.Struct, frozen=True, gc=False):
    """A row of a table: immutable, compared by value, `dict(row)` gives its columns.

    The garbage collector does not look at rows: what they hold came from JSON and has no cycles.
    """

    def keys(self) -> tuple[str, ...]:
        """Return the column names, in the table's order."""
        return self.__struct_fields__

    def __getitem__(self, column: str) -> Any:
        """Return one column's value.

        Raises:
            KeyError: the row has no such column.
        """
        if column not in self.__struct_fields__:
            raise KeyError(column)
        return getattr(self, column)


Encoder = typing.Callable[[Any], Any]
Item = TypeVar("Item")
_Row = TypeVar("_Row", bound=Row)


def new_id() -> str:
    """Return a fresh UUIDv7: inserts land at the right edge of the index."""
    return str(uuid7())


def timestamp(moment: datetime) -> str:
    """Return the text of a time: UTC, milliseconds, 24 characters, so that texts sort by time."""
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    # A fifth of the time that isoformat takes; whole seconds come without a fraction.
    text = msgspec.json.encode(moment)[1:-2].decode()
    return f"{text[:23] if moment.microsecond else f'{text}.000'}Z"


def expect(name: str, value: object, kind: Any, what: str) -> None:
    """Check the type of the argument `name`, which must be `what`.

    Raises:
        InvalidValue: it is of none of the types `kind`, which `isinstance` takes.
    """
    if not isinstance(value, kind):
        raise InvalidValue(None, name, f"must be {what}", value_type=type(value).__name__)


def listed(
    table: str | None, name: str, values: Iterable[Item], what: str, *, kind: type = object
) -> list[Item]:
    """Return the items of the argument `name`, which must be several of `what`, of type `kind`.

    Raises:
        InvalidValue: it cannot be iterated, is one text, or an item is of another type.
    """
    fault: object = values
    if isinstance(values, Iterable) and not isinstance(values, str | bytes | bytearray):
        items = list(values)
        if all(issubclass(it, kind) for it in set(map(type, items))):
            return items
        fault = next(it for it in items if not isinstance(it, kind))
    raise InvalidValue(table, name, f"must be several {what}", value_type=type(fault).__name__)


def duration(
    column: str,
    span: timedelta,
    *,
    longest: timedelta,
    shortest: timedelta = timedelta(milliseconds=1),
) -> timedelta:
    """Return `span` if it is from `shortest` to `longest`.

    Raises:
        InvalidValue: it is not.
    """
    if not isinstance(span, timedelta) or not shortest <= span <= longest:
        raise InvalidValue(
            None,
            column,
            f"must be a timedelta from {shortest / timedelta(milliseconds=1):g} ms to {longest}",
            value_type=type(span).__name__,
        )
    return span


class RefusedError(Exception):
    """Why an encoder takes no such value. Whoever binds it adds which column that was."""


def text_encoder(
    *, min_length: int = 0, max_length: int = MAX_TEXT, pattern: str | None = None, what: str = ""
) -> Encoder:
    """Return the encoder of texts of so many characters that match `pattern`, which is `what`."""
    matches = re.compile(pattern).search if pattern else None

    def encode(value: Any) -> str:
        if not isinstance(value, str):
            raise RefusedError("must be text")
        if not min_length <= len(value) <= max_length:
            raise RefusedError(f"must have {min_length} to {max_length} characters")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise RefusedError("must not hold lone surrogates") from None
        if "\0" in value:
            raise RefusedError("must not hold NUL characters")
        if matches is not None and (matches(value) is None or value.endswith("\n")):
            raise RefusedError(f"must be {what or 'of the form ' + str(pattern)}")
        return value if type(value) is str else str.__str__(value)

    return encode


def integer_encoder(*, at_least: int | None = None, at_most: int | None = None) -> Encoder:
    """Return the encoder of integers in a range, at most that of 64 bits."""
    low = _MIN_INTEGER if at_least is None else at_least
    high = _MAX_INTEGER if at_most is None else at_most

    def encode(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise RefusedError("must be an integer")
        if not low <= value <= high:
            raise RefusedError(f"must be from {low} to {high}")
        return int(value)

    return encode


def _boolean(columns: Columns) -> Encoder:
    write = columns.write_boolean

    def encode(value: Any) -> Any:
        if not isinstance(value, bool):
            raise RefusedError("must be a boolean")
        return write(value)

    return encode


def real(value: Any) -> float:
    """Encode a finite number.

    Raises:
        RefusedError: it is none.
    """
    if isinstance(value, float | int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            number = float(value)
            if math.isfinite(number):
                return number
    raise RefusedError("must be a finite number")


def _time(columns: Columns) -> Encoder:
    write = columns.write_time

    def encode(value: Any) -> Any:
        if not isinstance(value, datetime):
            raise RefusedError("must be a datetime")
        if value.utcoffset() is None:
            raise RefusedError("must be a datetime with a time zone")
        try:
            return write(value)
        except OverflowError:
            raise RefusedError("must be in the years 1 to 9999 in UTC") from None

    return encode


def _blob(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise RefusedError("must be bytes")
    if len(value) > MAX_BLOB:
        raise RefusedError(f"must have at most {MAX_BLOB} bytes")
    return value


def _vector(value: Any) -> bytes:
    try:
        return vectors.encode(value)
    except ValueError as error:
        raise RefusedError(str(error)) from None


def _enumeration(members: type[StrEnum]) -> Encoder:
    values = {member.value: member.value for member in members}

    def encode(value: Any) -> str:
        try:
            return values[value]
        except (KeyError, TypeError):
            raise RefusedError(f"must be one of {', '.join(values)}") from None

    return encode


def json_encoder(
    shape: type | None, items: Any = None, *, write: Callable[[bytes], Any] = bytes.decode
) -> Encoder:
    """Return the encoder of JSON of a `shape`, dict, list or any, that holds `items`.

    `write` makes the column's value of a document; by default, that is its text.
    """
    empty = None if shape is None else write(b"{}" if shape is dict else b"[]")
    expected = "a JSON array" if shape is list else "a JSON object"
    json_encode = msgspec.json.Encoder().encode

    def encode(value: Any) -> Any:
        if shape is not None:
            if not isinstance(value, shape):
                raise RefusedError(f"must be {expected}")
            if type(value) is shape and not value:
                return empty
        _check_json(value)
        if items is not None:
            try:
                msgspec.convert(value, items)
            except msgspec.ValidationError as error:
                raise RefusedError(f"must be {expected}: {error}") from None
        try:
            document = json_encode(value)
        except (TypeError, ValueError, msgspec.MsgspecError) as error:
            raise RefusedError(f"must be JSON: {error}") from None
        if len(document) > MAX_JSON:
            raise RefusedError(_TOO_LONG)
        # A cheap test first: almost no document needs the thorough one.
        if b"\\u0000" in document and _ESCAPED_NUL.search(document):
            raise RefusedError("must not hold NUL characters")
        return write(document)

    return encode


_TOO_LONG = f"must have at most {MAX_JSON} bytes as JSON"


def _check_json(value: Any) -> None:
    """Check, before it is encoded, that `value` is JSON which comes back equal, and not too much.

    It goes down level by level, without recursion. What it counts is never more than the length of
    the document, and is counted before it is looked at: however large the value, and however often
    it holds the same object, no more than half of `MAX_JSON` items are looked at.

    Raises:
        RefusedError: it is not.
    """
    size = 0
    level: list[Any] = [value if isinstance(value, _CONTAINERS) else [value]]
    for _ in range(MAX_JSON_DEPTH):
        below: list[Any] = []
        for container in level:
            if isinstance(container, dict):
                size += 5 * len(container)
                if size > MAX_JSON:
                    raise RefusedError(_TOO_LONG)
                try:
                    size += len("".join(container))
                except TypeError:
                    raise RefusedError("must not hold objects whose keys are no text") from None
                items: Iterable[Any] = container.values()
            else:
                size += 2 * len(container)
                if size > MAX_JSON:
                    raise RefusedError(_TOO_LONG)
                items = container
            for it in items:
                kind = type(it)
                if kind is str:
                    size += len(it)
                elif kind is int:
                    if not _MIN_INTEGER <= it <= _MAX_INTEGER:
                        raise RefusedError(_TOO_BIG)
                elif it is None or kind is bool:
                    pass
                elif kind is float:
                    # Neither NaN nor infinities have a difference of zero to themselves.
                    if it - it:
                        raise RefusedError(_NOT_FINITE)
                elif isinstance(it, _CONTAINERS):
                    if it:
                        below.append(it)
                elif isinstance(it, str):
                    size += len(it)
                elif isinstance(it, int):
                    if not _MIN_INTEGER <= int(it) <= _MAX_INTEGER:
                        raise RefusedError(_TOO_BIG)
                elif isinstance(it, float):
                    if float(it) - float(it):
                        raise RefusedError(_NOT_FINITE)
                else:
                    raise RefusedError(_NOT_JSON)
        if size > MAX_JSON:
            raise RefusedError(_TOO_LONG)
        if not below:
            return
        level = below
    raise RefusedError(f"must be nested at most {MAX_JSON_DEPTH} deep")


_CONTAINERS = (dict, list)
_TOO_BIG = "must not hold integers beyond 64 bits"
_NOT_FINITE = "must not hold NaN or infinities"
_NOT_JSON = "must be JSON values only: text, finite numbers, lists, objects"


def _nullable(encode: Encoder) -> Encoder:
    return lambda value: None if value is None else encode(value)


@cache
def _by_type(columns: Columns) -> tuple[tuple[type, Encoder], ...]:
    return (
        (bool, _boolean(columns)),
        (str, text_encoder()),
        (int, integer_encoder()),
        (float, real),
        (datetime, _time(columns)),
        (bytes, _blob),
        (dict, json_encoder(dict, write=columns.write_json)),
        (list, json_encoder(list, write=columns.write_json)),
    )


@cache
def _untyped(columns: Columns) -> Encoder:
    """Return the encoder of a parameter that is no column's, by the value's own type."""
    by_type = _by_type(columns)

    def encode(value: Any) -> Any:
        if value is None:
            return None
        for kind, encode_kind in by_type:
            if isinstance(value, kind):
                return encode_kind(value)
        raise RefusedError("must be text, a number, a datetime, an array or an object")

    return encode


class _Column(typing.NamedTuple):
    """A column's annotation, taken apart."""

    type: Any
    meta: msgspec.Meta | None
    nullable: bool
    items: Any


@cache
def _hints(row_type: type[Row]) -> dict[str, Any]:
    return typing.get_type_hints(row_type, include_extras=True)


def _columns(row_type: type[Row]) -> dict[str, _Column]:
    hints = _hints(row_type)
    return {name: _column(hints[name]) for name in row_type.__struct_fields__}


def _column(hint: Any) -> _Column:
    if get_origin(hint) in (Union, types.UnionType):
        options = [option for option in get_args(hint) if option is not types.NoneType]
        if len(options) != 1:
            raise TypeError(f"a column has one type, or one and None: {hint}")
        return _column(options[0])._replace(nullable=True)
    if get_origin(hint) is Annotated:
        inner, *extras = get_args(hint)
        [meta] = [extra for extra in extras if isinstance(extra, msgspec.Meta)]
        return _column(inner)._replace(meta=meta)
    # The keys of JSON are text anyway, and of `Any` there is nothing to check.
    items = hint if get_args(hint) and get_args(hint)[-1] is not Any else None
    return _Column(get_origin(hint) or hint, None, nullable=False, items=items)


def encoder(hint: Any, columns: Columns) -> Encoder:
    """Return the function that turns a value annotated `hint` into a column's value."""
    column = _column(hint)
    encode = _encoder(column, columns)
    return _nullable(encode) if column.nullable else encode


def _encoder(column: _Column, columns: Columns) -> Encoder:
    kind, meta = column.type, column.meta
    if kind is str and meta is not None:
        return text_encoder(
            min_length=meta.min_length or 0,
            max_length=MAX_TEXT if meta.max_length is None else meta.max_length,
            pattern=meta.pattern,
            what=meta.description or "",
        )
    if kind is int and meta is not None:
        return integer_encoder(
            at_least=None if meta.ge is None else int(meta.ge),
            at_most=None if meta.le is None else int(meta.le),
        )
    if kind is Any:
        return json_encoder(None, write=columns.write_json)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return _enumeration(kind)
    if kind is tuple:
        return _vector
    if column.items is not None:
        return json_encoder(kind, column.items, write=columns.write_json)
    return dict(_by_type(columns))[kind]


def parameter_encoders(
    row_type: type[Row],
    parameters: Iterable[str],
    columns: Columns,
    optional: Container[str] = (),
) -> dict[str, Encoder]:
    """Return the encoder of each parameter of a statement that deals with `row_type`.

    A parameter that is named as a column takes that column's type, and those of `_cursors` what
    pages are read from; any other is encoded by the type of its value. One that is `optional` may
    be None whatever its column takes. An encoder raises `RefusedError`.
    """
    encoders = _cursors(columns) | _column_encoders(row_type, columns)
    chosen = {name: encoders.get(name) or _untyped(columns) for name in parameters}
    return {
        name: _nullable(encode) if name in optional else encode for name, encode in chosen.items()
    }


@cache
def _column_encoders(row_type: type[Row], columns: Columns) -> dict[str, Encoder]:
    return {name: encoder(hint, columns) for name, hint in _hints(row_type).items()}


def _cursor(columns: Columns) -> Encoder:
    encode_value = _untyped(columns)

    def encode(value: Any) -> Any:
        # A database may compare whatever it is given, and answer with some page or other.
        if not isinstance(value, int | datetime) or isinstance(value, bool):
            raise RefusedError("must be the `next` of a page")
        return encode_value(value)

    return encode


def _key_cursor(encode: Encoder, first: str) -> Encoder:
    """Return the encoder of a cursor by a text key: None, or `first`, is before every key."""
    return lambda value: first if value is None or value is first else encode(value)


FIRST_ID = "00000000-0000-0000-0000-000000000000"
"""The nil UUID, which sorts before every id: where lists by id begin."""


@cache
def _cursors(columns: Columns) -> dict[str, Encoder]:
    after_text = _key_cursor(text_encoder(), "")
    return {
        "after": _cursor(columns),
        "after_id": _key_cursor(encoder(Id, columns), FIRST_ID),
        "after_place": after_text,
        "after_key": after_text,
        "after_path": after_text,
        "after_request": after_text,
    }


def decoder(
    row_type: type[_Row], columns: Columns, *, table: str, key: tuple[str, ...] = ("id",)
) -> Callable[[Sequence[tuple[Any, ...]]], list[_Row]]:
    """Return the function that turns rows of `table`'s column values into `row_type`s.

    Many rows are converted column by column, so that each conversion is one loop in C. It raises
    `StoreCorrupt` when a row does not hold what its columns are declared to hold; the row and
    the column at fault are searched for only then.
    """
    conversions = [
        (index, _decoder(column, columns), column.nullable)
        for index, column in enumerate(_columns(row_type).values())
        if column.type not in (str, int, float, bytes)
    ]
    inspect = inspector(row_type, columns, table=table, key=key)

    def decode_one(row: tuple[Any, ...]) -> _Row:
        values = list(row)
        for index, convert, nullable in conversions:
            if values[index] is not None or not nullable:
                values[index] = convert(values[index])
        return row_type(*values)

    def decode_many(rows: Sequence[tuple[Any, ...]]) -> list[_Row]:
        by_column: list[Any] = list(zip(*rows, strict=True))
        for index, convert, nullable in conversions:
            values = by_column[index]
            by_column[index] = (
                [None if value is None else convert(value) for value in values]
                if nullable
                else map(convert, values)
            )
        return list(map(row_type, *by_column))

    def damage_of(row: tuple[Any, ...]) -> StoreCorrupt | None:
        try:
            decode_one(row)
        except Exception:  # noqa: BLE001 - whatever a conversion makes of a bad value
            return inspect(row) or StoreCorrupt("has a row that cannot be read", table=table)
        return None

    def decode(rows: Sequence[tuple[Any, ...]]) -> list[_Row]:
        try:
            return decode_many(rows) if len(rows) > 1 else [decode_one(row) for row in rows]
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - whatever a conversion makes of a bad value
            damage = next(filter(None, map(damage_of, rows)))
        # Outside the handler: what a conversion raises may quote the value.
        raise damage

    return decode


Inspector = typing.Callable[[tuple[Any, ...]], StoreCorrupt | None]


def inspector(
    row_type: type[Row], columns: Columns, *, table: str, key: tuple[str, ...] = ("id",)
) -> Inspector:
    """Return the function that says what is wrong with a row of column values, if anything is.

    It is thorough and slow: each value must be one that an encoder would have written. The error
    names the row by `key` and the column, and never quotes the value, which may be a secret.
    """
    names = row_type.__struct_fields__
    inspectors = [
        (name, _inspector(column, columns)) for name, column in _columns(row_type).items()
    ]
    keys = [names.index(name) for name in key]

    def inspect(row: tuple[Any, ...]) -> StoreCorrupt | None:
        if len(row) != len(inspectors):
            return StoreCorrupt(f"has {len(row)} columns, not {len(inspectors)}", table=table)
        for value, (name, flaw_of) in zip(row, inspectors, strict=True):
            flaw = flaw_of(value)
            if flaw is not None:
                row_id = "/".join(_readable_key(row[index]) for index in keys)
                return StoreCorrupt(flaw, table=table, row_id=row_id, column=name)
        return None

    return inspect


def _readable_key(value: Any) -> str:
    return value[:_LONGEST_KEY] if isinstance(value, str) else ascii(value)[:_LONGEST_KEY]


_LONGEST_KEY = 100
"""Characters of a row's key that an error shows: of a damaged row, the key may be anything."""


def _inspector(column: _Column, columns: Columns) -> Callable[[Any], str | None]:
    stored, named = columns.storage.get(column.type, (str, "text"))
    plain = column.type in (str, int, float, bytes)
    convert = None if plain else _decoder(column, columns)
    encode = _encoder(column, columns)

    def flaw_of(value: Any) -> str | None:
        if value is None:
            return None if column.nullable else "is NULL"
        if not isinstance(value, stored):
            return f"holds {_storage_name(value)} where {named} belongs"
        if column.type is bool and value not in (0, 1):
            return "is neither 0 nor 1"
        try:
            decoded = convert(value) if convert is not None else value
        except Exception:  # noqa: BLE001 - whatever a conversion makes of a bad value
            return _UNREADABLE.get(column.type, f"cannot be read as {_type_name(column.type)}")
        try:
            encode(decoded)
        except RefusedError as refused:
            return str(refused)
        return None

    return flaw_of


_UNREADABLE: dict[Any, str] = {
    datetime: "is not a timestamp",
    dict: "is not a JSON object of the expected shape",
    list: "is not a JSON array of the expected shape",
    Any: "is not JSON",
    tuple: "is not a vector of float32 numbers",
}


def _type_name(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return f"one of {', '.join(member.value for member in kind)}"
    return str(getattr(kind, "__name__", kind))


def _storage_name(value: Any) -> str:
    names: dict[type, str] = {str: "text", bytes: "a blob", int: "an integer", float: "a number"}
    return names.get(type(value), "text that is not UTF-8")


def _decoder(column: _Column, columns: Columns) -> Callable[[Any], Any]:
    kind = column.type
    if kind is datetime:
        return columns.read_time
    if kind is bool:
        return columns.read_boolean
    if kind is tuple:
        return vectors.decode
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return {member.value: member for member in kind}.__getitem__
    if kind is Any:
        return msgspec.json.Decoder().decode
    return msgspec.json.Decoder(column.items or kind).decode

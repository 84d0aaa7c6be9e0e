from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastore import InvalidValue, StoreCorrupt, resources
from metastore.backends.base import Columns
from metastore.backends.sqlite.columns import COLUMNS
from metastore.codec import (
    MAX_JSON,
    MAX_TEXT,
    Id,
    JsonObject,
    RefusedError,
    Row,
    decoder,
    duration,
    inspector,
    new_id,
    parameter_encoders,
    timestamp,
)
from metastore.repositories.base import _catalogue

if TYPE_CHECKING:
    from pathlib import Path


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Everything(Row, frozen=True):
    id: Id
    text: str
    short: Annotated[str, msgspec.Meta(min_length=1, max_length=3)]
    number: int
    flag: bool
    real: float
    moment: datetime
    colour: Colour
    document: JsonObject
    items: list[str]
    anything: Any
    data: bytes
    note: str | None
    later: datetime | None
    shade: Colour | None
    extra: JsonObject | None


ENCODE = parameter_encoders(Everything, [*Everything.__struct_fields__, "other"], COLUMNS)

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(
            texts,
            children,
            max_size=4,
        )
    ),
    max_leaves=10,
)
moments = st.datetimes(
    timezones=st.just(UTC),
    min_value=datetime(1, 1, 2),  # noqa: DTZ001 - hypothesis takes naive bounds
).map(lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000))


@given(
    text=texts,
    number=st.integers(-(2**63), 2**63 - 1),
    flag=st.booleans(),
    real=st.floats(allow_nan=False, allow_infinity=False),
    moment=moments,
    colour=st.sampled_from(Colour),
    document=st.dictionaries(texts, json_values, max_size=4),
    items=st.lists(texts, max_size=4),
    anything=json_values,
    data=st.binary(max_size=20),
    later=st.none() | moments,
)
def test_round_trip__what_is_accepted_comes_back_equal(**values: Any) -> None:
    row = Everything(
        id=new_id(), short="abc", note=None, shade=None, extra=None, **values
    )  # fmt: skip
    columns = tuple(ENCODE[name](row[name]) for name in Everything.__struct_fields__)
    [back] = decoder(Everything, COLUMNS, table="everything")([columns])
    assert back == row
    assert type(back.colour) is Colour
    assert type(back.flag) is bool


# A database that has types for what SQLite holds as text and numbers.
TYPED = Columns(
    dialect="typed",
    write_time=lambda moment: moment,
    read_time=lambda value: value,
    write_boolean=lambda flag: flag,
    read_boolean=lambda value: value,
    write_json=lambda document: document,
    write_day=datetime.date,
    read_day=lambda value: value,
    storage={
        **COLUMNS.storage,
        bool: (bool, "a boolean"),
        datetime: (datetime, "a time"),
        dict: (bytes, "a document"),
        list: (bytes, "a document"),
        Any: (bytes, "a document"),
    },
)


def test_columns__say_how_values_are_held() -> None:
    moment = datetime(2026, 1, 31, 23, 59, 59, 123_000, tzinfo=UTC)
    values: dict[str, Any] = {
        "id": new_id(), "text": "t", "short": "s", "number": 1, "flag": True, "real": 1.5,
        "moment": moment, "colour": Colour.RED, "document": {}, "items": ["a"], "anything": 1,
        "data": b"", "note": None, "later": None, "shade": None, "extra": {}, "other": moment,
    }  # fmt: skip
    names = ("flag", "moment", "later", "items", "document", "extra", "anything", "other", "after")
    held = {}
    for columns in (COLUMNS, TYPED):
        encode = parameter_encoders(Everything, [*values, "after"], columns)
        held[columns.dialect] = [encode[name]((values | {"after": moment})[name]) for name in names]
        row = tuple(encode[name](values[name]) for name in Everything.__struct_fields__)
        [back] = decoder(Everything, columns, table="everything")([row])
        assert dict(back) == {name: values[name] for name in Everything.__struct_fields__}
        assert inspector(Everything, columns, table="everything")(row) is None
    text = "2026-01-31T23:59:59.123Z"
    assert held == {
        "sqlite": [1, text, None, '["a"]', "{}", "{}", "1", text, text],
        "typed": [True, moment, None, b'["a"]', b"{}", b"{}", b"1", moment, moment],
    }


@pytest.mark.parametrize("columns", [COLUMNS, TYPED], ids=["sqlite", "typed"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("flag", 1), ("moment", "2026-01-31T23:59:59.123Z"), ("items", "[]"), ("after", True)],
)
def test_columns__are_given_only_what_was_checked(columns: Columns, name: str, value: Any) -> None:
    with pytest.raises(RefusedError):
        parameter_encoders(Everything, [name], columns)[name](value)


def test_columns__of_two_dialects_have_statements_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "statements_directory", lambda: tmp_path)
    conditions = {"everything.sql": "flag = :flag", "everything.typed.sql": "flag IS :flag"}
    for name, condition in conditions.items():
        statement = f"-- name: find_it(flag)\nSELECT * FROM everything WHERE {condition};\n"
        (tmp_path / name).write_text(statement, encoding="utf-8")
    calls = {
        columns.dialect: _catalogue("everything", Everything, columns).find_it(flag=True)
        for columns in (COLUMNS, TYPED, COLUMNS)
    }
    assert {dialect: call.parameters for dialect, call in calls.items()} == {
        "sqlite": (1,),
        "typed": (True,),
    }
    assert calls["sqlite"].statement.sql.endswith("flag = ?1")
    assert calls["typed"].statement.sql.endswith("flag IS ?1")
    assert type(calls["typed"].parameters[0]) is bool


ID = "018f5c5e-7b1c-7000-8000-000000000000"
NAIVE = datetime(2026, 1, 1)  # noqa: DTZ001 - what is refused

REFUSED: list[tuple[str, Any]] = [
    ("id", "not-an-id"),
    ("id", "018F5C5E-7B1C-7000-8000-000000000000"),
    ("id", ID + "\n"),
    ("id", " " + ID),
    ("id", None),
    ("id", 5),
    ("text", None),
    ("text", 5),
    ("text", b"bytes"),
    ("text", "nul\0"),
    ("text", "lone \ud800 surrogate"),
    ("text", "x" * (MAX_TEXT + 1)),
    ("short", ""),
    ("short", "abcd"),
    ("number", 2**63),
    ("number", -(2**63) - 1),
    ("number", True),
    ("number", 1.0),
    ("number", "1"),
    ("number", None),
    ("flag", 1),
    ("flag", None),
    ("real", math.nan),
    ("real", math.inf),
    ("real", -math.inf),
    ("real", True),
    ("real", "1.0"),
    ("moment", NAIVE),
    ("moment", "2026-01-01T00:00:00Z"),
    ("moment", 0),
    ("colour", "green"),
    ("colour", None),
    ("colour", ["red"]),
    ("document", []),
    ("document", "{}"),
    ("document", {"nan": math.nan}),
    ("document", {"deep": [{"inf": math.inf}]}),
    ("document", {1: "a"}),
    ("document", {"tuple": (1, 2)}),
    ("document", {"set": {1}}),
    ("document", {"bytes": b"x"}),
    ("document", {"moment": datetime(2026, 1, 1, tzinfo=UTC)}),
    ("document", {"object": object()}),
    ("document", {"big": 2**64}),
    ("document", {"big": [2**63]}),
    ("document", {"big": [-(2**63) - 1]}),
    ("document", {"surrogate": "\ud800"}),
    ("document", {"\udfff": 1}),
    ("document", {"nul": "a\0b"}),
    ("document", {"a\0b": 1}),
    ("document", {"long": "x" * MAX_JSON}),
    ("items", {}),
    ("items", ["a", 1]),
    ("items", ("a",)),
    ("anything", (1,)),
    ("anything", math.nan),
    ("data", "text"),
    ("later", NAIVE),
    ("other", object()),
    ("other", math.nan),
    ("other", "\0"),
    ("other", 2**63),
    ("other", NAIVE),
]


@pytest.mark.parametrize(("column", "value"), REFUSED)
def test_encode__refuses_what_would_not_come_back(column: str, value: Any) -> None:
    with pytest.raises(RefusedError):
        ENCODE[column](value)


def test_encode__nested_too_deep_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RefusedError):
        ENCODE["anything"](deep)


def test_encode__a_backslash_before_u0000_is_text() -> None:
    document = {"path": "C:\\u0000", "two": "\\\\u0000"}
    assert msgspec.json.decode(ENCODE["document"](document)) == document


def test_encode__an_error_does_not_show_the_value() -> None:
    with pytest.raises(RefusedError) as error:
        ENCODE["short"]("secret-value")
    assert "secret-value" not in str(error.value)
    assert "secret-value" not in repr(error.value)


def test_timestamp__is_utc_of_fixed_width_in_order() -> None:
    moment = datetime(2026, 1, 31, 23, 59, 59, 123_999, tzinfo=UTC)
    assert timestamp(moment) == "2026-01-31T23:59:59.123Z"
    there = moment.astimezone(timezone(timedelta(hours=-7)))
    assert timestamp(there) == timestamp(moment)
    assert timestamp(datetime(1, 1, 1, tzinfo=UTC)) == "0001-01-01T00:00:00.000Z"
    moments = [moment + timedelta(milliseconds=n * 777) for n in range(50)]
    assert sorted(map(timestamp, moments)) == [timestamp(m) for m in moments]


DAY = timedelta(days=1)


@pytest.mark.parametrize(
    "span", [timedelta(0), timedelta(seconds=-1), DAY + timedelta(milliseconds=1), 5, None]
)
def test_duration__is_longer_than_nothing_and_bounded(span: Any) -> None:
    with pytest.raises(InvalidValue):
        duration("ttl", span, longest=DAY)


def test_new_id__sorts_by_time() -> None:
    ids = [new_id() for _ in range(1000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 1000


def test_row__is_a_mapping_for_those_who_want_one() -> None:
    class Small(Row, frozen=True):
        a: int
        b: str

    row = Small(1, "x")
    assert dict(row) == {"a": 1, "b": "x"}
    with pytest.raises(KeyError):
        row["c"]
    with pytest.raises(AttributeError):
        row.a = 2  # type: ignore[misc]


SOUND: dict[str, Any] = {
    "id": "0190a5a4-7f62-7000-8000-000000000001", "text": "t", "short": "s", "number": 1,
    "flag": 1, "real": 1.5, "moment": "2026-01-31T23:59:59.123Z", "colour": "red",
    "document": "{}", "items": "[]", "anything": "null", "data": b"", "note": None,
    "later": None, "shade": None, "extra": None,
}  # fmt: skip
DAMAGED = [
    ("moment", "2026-99-99T23:59:59.123Z"), ("moment", None), ("moment", 5), ("moment", b"\xff"),
    ("colour", "green"), ("colour", None), ("colour", 1),
    ("document", "{"), ("document", "[]"), ("document", ""), ("document", None),
    ("items", "{}"), ("items", "[1]"), ("items", "[null]"),
    ("anything", "{"), ("anything", None),
    ("later", "never"), ("shade", "green"), ("extra", "[]"), ("extra", "1"),
]  # fmt: skip


@pytest.mark.parametrize("others", [(0, 0), (1, 1), (0, 60), (60, 0)], ids=str)
@pytest.mark.parametrize(("column", "value"), DAMAGED)
def test_decode__names_the_first_damaged_row_and_column_and_not_the_value(
    others: tuple[int, int], column: str, value: Any
) -> None:
    first = SOUND | {"id": SOUND["id"][:-1] + "2", column: value}
    later = SOUND | {"id": SOUND["id"][:-1] + "3", "items": "later"}
    # A row that an encoder would refuse and that can be read is not to blame.
    readable = SOUND | {"short": "longer than it may be"}
    before, behind = others
    rows = [readable] * before + [first] + [SOUND] * behind + ([later] if behind else [])
    with pytest.raises(StoreCorrupt) as caught:
        decoder(Everything, COLUMNS, table="everything")([tuple(row.values()) for row in rows])
    error = caught.value
    assert (error.table, error.row_id, error.column) == ("everything", first["id"], column)
    assert error.__cause__ is None
    assert error.__context__ is None
    assert not isinstance(value, str) or len(value) < 3 or value not in str(error)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *DAMAGED,
        ("id", "no uuid"), ("id", None), ("id", b"x"), ("short", ""), ("short", "longer"),
        ("text", b"blob"), ("text", None), ("number", "1"), ("number", 1.5), ("number", b"1"),
        ("flag", 2), ("flag", "1"), ("real", float("inf")), ("data", "text"), ("note", 1),
    ],
)  # fmt: skip
def test_inspector__finds_what_no_encoder_would_have_written(column: str, value: Any) -> None:
    inspect = inspector(Everything, COLUMNS, table="everything")
    assert inspect(tuple(SOUND.values())) is None
    found = inspect(tuple((SOUND | {column: value}).values()))
    assert found is not None
    assert (found.table, found.column) == ("everything", column)

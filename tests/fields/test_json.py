"""BSON values as JSON and back, and what is refused."""

import base64
import datetime
import json
import math
import subprocess
import sys
import uuid
from typing import Any

import bson
import numpy as np
import pytest
import torch
from bson import Binary, Code, DBRef, Decimal128, Int64, MaxKey, ObjectId, Regex, Timestamp

from superduper.errors import InvalidInput
from superduper.fields.codec import decode, encode
from superduper.fields.json import dumps, from_json, loads, to_json

ROUND_TRIPS = [
    None,
    True,
    "ä\0€😀",
    -5,
    2**63 - 1,
    1.5,
    [],
    {},
    [1, [2.5, {"a": None}]],
    ObjectId("65f0c0ffee0000000000abcd"),
    datetime.datetime(2026, 1, 31, 12, 0, 0, 123000),
    datetime.datetime(1850, 1, 1),
    b"",
    b"\0\xff",
    Binary.from_uuid(uuid.UUID(int=7)),
    Decimal128("1.50"),
]


@pytest.mark.parametrize("value", ROUND_TRIPS)
def test_values_come_back_as_they_went_out(value: Any) -> None:
    for wrapped in (value, {"a": [value]}):
        text = dumps(wrapped)

        assert json.loads(text) == to_json(wrapped)
        assert loads(text) == wrapped
        assert from_json(to_json(wrapped)) == wrapped


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (ObjectId("65f0c0ffee0000000000abcd"), {"$oid": "65f0c0ffee0000000000abcd"}),
        (datetime.datetime(2026, 1, 31), {"$date": "2026-01-31T00:00:00Z"}),
        (b"abc", {"$binary": {"base64": "YWJj", "subType": "00"}}),
        (Int64(5), 5),
        (float("nan"), {"$numberDouble": "NaN"}),
        ([1.0, -math.inf], [1.0, {"$numberDouble": "-Infinity"}]),
        (Binary.from_vector([0.5, -1.0], bson.binary.BinaryVectorDtype.FLOAT32), [0.5, -1.0]),
        (encode(np.array([1, -1], "int8")), [1, -1]),
        (encode(np.array([True, False, True])), [1, 0, 1]),
        (encode(np.array([np.inf], "float32")), [{"$numberDouble": "Infinity"}]),
        (Regex("a", "i"), {"$regularExpression": {"pattern": "a", "options": "i"}}),
        (Code("f"), {"$code": "f"}),
        (Timestamp(1, 2), {"$timestamp": {"t": 1, "i": 2}}),
        (DBRef("c", 1), {"$ref": "c", "$id": 1}),
        (MaxKey(), {"$maxKey": 1}),
        (Binary(b"\x99\x00", 9), {"$binary": {"base64": "mQA=", "subType": "09"}}),
        ((1, 2), [1, 2]),
    ],
)
def test_the_forms_that_go_out(value: Any, expected: Any) -> None:
    assert to_json(value) == expected
    assert json.loads(dumps({"x": value})) == {"x": expected}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"$date": 1000}, datetime.datetime(1970, 1, 1, 0, 0, 1)),
        ({"$date": {"$numberLong": "-1000"}}, datetime.datetime(1969, 12, 31, 23, 59, 59)),
        (
            {"$date": "2026-01-31T12:00:00.123456+02:00"},
            datetime.datetime(2026, 1, 31, 10, 0, 0, 123_000),
        ),
        ({"$numberLong": "-9223372036854775808"}, -(2**63)),
        ({"$numberInt": "5"}, 5),
        ({"$numberDouble": "1.5"}, 1.5),
        ({"$binary": {"base64": "YWJj", "subType": "0"}}, b"abc"),
        ({"$binary": {"base64": "YWJj", "subType": 0}}, b"abc"),
        ({"$binary": {"base64": "JwAAAAA/", "subType": "09"}}, encode(np.array([0.5], "float32"))),
    ],
)
def test_other_forms_that_come_in(value: Any, expected: Any) -> None:
    assert from_json(value) == expected


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype="int16").reshape(2, 3),
        np.arange(3, dtype="float32"),
        np.arange(3, dtype="int8"),
        np.array([True, False, True]),
        np.array([], "bool"),
        np.zeros((0, 2)),
        np.array(1 + 2j),
    ],
)
def test_tensors_come_in_as_the_codec_would_have_stored_them(array: Any) -> None:
    data = base64.b64encode(array.tobytes()).decode()
    sent = {"dtype": array.dtype.name, "shape": list(array.shape), "data": data, "kind": "numpy"}

    stored = from_json({"x": sent})["x"]

    assert stored == encode(array)
    assert np.array_equal(decode(stored, arrays="numpy"), array)


def test_tensors_go_out_as_base64() -> None:
    stored = encode(torch.eye(2, dtype=torch.bfloat16))

    sent = json.loads(dumps([stored]))

    assert sent[0].keys() == {"dtype", "shape", "data", "kind"}
    assert from_json(sent) == [stored]


DEEP: Any = 1
for _ in range(64):
    DEEP = [DEEP]


def test_64_levels_are_enough() -> None:
    assert from_json(DEEP) == DEEP
    assert loads(b"[" * 64 + b"]" * 64) is not None
    with pytest.raises(InvalidInput, match="more than 64 levels"):
        from_json([DEEP])
    with pytest.raises(InvalidInput, match="more than 64 levels"):
        from_json({"a": DEEP})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"$regex": "a.*"}, r"unexpected key '\$regex'"),
        ({"$regularExpression": {"pattern": "a", "options": ""}}, "unexpected key"),
        ({"$code": "f()"}, "unexpected key"),
        ({"$ref": "c", "$id": 1}, "unexpected key"),
        ({"$where": "sleep(1)"}, "unexpected key"),
        ({"$gt": None}, "unexpected key"),
        ({"$" + "x" * 10_000: 1}, r"unexpected key '\$x{23}'"),
        ({"$oid": "65f0c0ffee0000000000abcd", "a": 1}, "each alone"),
        ({"a": 1, "$oid": "65f0c0ffee0000000000abcd"}, "each alone"),
        ({"$oid": "zz"}, r"\$oid: an id has 24"),
        ({"$oid": 5}, r"\$oid: an id has 24"),
        ({"$oid": {"$oid": "65f0c0ffee0000000000abcd"}}, r"\$oid: an id has 24"),
        ({"$date": "yesterday"}, r"\$date: needs a date"),
        ({"$date": None}, "needs a date"),
        ({"$date": True}, "needs a date"),
        ({"$date": 10**18}, "needs a date"),
        ({"$date": 1.5}, "needs a date"),
        ({"$date": {"$numberLong": "x"}}, r"\$date: needs an integer of 64 bits"),
        ({"$numberLong": "9223372036854775808"}, "64 bits"),
        ({"$numberLong": 5}, "as text"),
        ({"$numberLong": "1" * 5000}, "64 bits"),
        ({"$numberDouble": "NaN"}, "NaN and Infinity are not"),
        ({"$numberDouble": "inf"}, "NaN and Infinity are not"),
        ({"$numberDouble": {}}, "needs a number"),
        ({"$numberDecimal": "x"}, "needs a decimal"),
        ({"$numberDecimal": 5}, "needs a decimal"),
        ({"$binary": "YWJj"}, "needs {'base64'"),
        ({"$binary": {"base64": "YWJj", "subType": "02"}}, "the subType is"),
        ({"$binary": {"base64": "YWJj", "subType": "80"}}, "the subType is"),
        ({"$binary": {"base64": "YWJj", "subType": None}}, "the subType is"),
        ({"$binary": {"base64": "YWJj", "subType": False}}, "the subType is"),
        ({"$binary": {"base64": "?", "subType": "00"}}, "not valid base64"),
        ({"$binary": {"base64": 5, "subType": "00"}}, "not valid base64"),
        ({"$binary": {"base64": "ä", "subType": "00"}}, "not valid base64"),
        ({"$binary": {"base64": "YWJj", "subType": "04"}}, "16 bytes"),
        ({"$binary": {"base64": "YWJj", "subType": "09"}}, "vector"),
        ({"dtype": "object", "shape": [1], "data": ""}, "unknown tensor dtype"),
        ({"dtype": "float32", "shape": [10**12, 64], "data": ""}, "needs 256000000000000 bytes"),
        ({"dtype": "float32", "shape": [1], "data": "?"}, "not valid base64"),
        ({"dtype": "bool", "shape": [1], "data": "Ag=="}, "bytes of 0 and 1"),
        ({"dtype": "int8", "shape": [0], "data": "", "kind": {"$where": 1}}, "a tensor's kind"),
        (float("nan"), "NaN and Infinity are not"),
        ([1.0, float("inf")], "NaN and Infinity are not"),
        (2**63, "64 bits"),
        ([2**63], "64 bits"),
        (-(2**63) - 1, "64 bits"),
        ("\ud800", "surrogate"),
        ({"\ud800": 1}, "surrogate"),
        ({"a\0b": 1}, "NUL"),
        (object(), "a object is not a JSON value"),
    ],
)
def test_what_is_refused_says_where_and_what_and_stays_short(value: Any, text: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^a\.1(: |\.).*{text}") as caught:
        from_json({"a": [0, value]})
    assert len(str(caught.value)) < 400
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON|levels"),
        (b"NaN", "not valid JSON|not a JSON number"),
        (b"[Infinity]", "not valid JSON|not a JSON number"),
        (b"[1e999]", "not valid JSON|not JSON numbers"),
        (b"[12345678901234567890123]", "64 bits"),
        (b"[9223372036854775808]", "64 bits"),
        (b'{"a":-12345678901234567890123}', "64 bits"),
        (b"12345678901234567890123", "64 bits"),
        (b"1" * 10_000, "64 bits|infinity"),
        (b'"\\ud800"', "not valid JSON|surrogate"),
        (b'{"a\\u0000": 1}', "NUL"),
    ],
)
def test_text_that_is_refused(text: bytes, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem) as caught:
        loads(text)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", [b"0.00012345678901234567", b"[1e-7, -1234567890123456789.5]"])
def test_numbers_with_many_digits_are_taken(text: bytes) -> None:
    assert loads(text) == json.loads(text)


def test_of_equal_keys_the_last_wins() -> None:
    assert loads(b'{"a": 1, "a": 2}') == {"a": 2}


@pytest.mark.parametrize(
    "document",
    [
        {"dtype": "a", "shape": "b", "data": "c"},
        {"dtype": "float32", "data": "AAAA"},
        {"shape": []},
    ],
)
def test_what_only_resembles_a_tensor_stays_as_it_is(document: dict[str, Any]) -> None:
    assert from_json(document) == document
    assert to_json(document) == document


def test_a_stored_document_that_resembles_a_tensor_can_be_shown() -> None:
    stored = {"dtype": "x", "shape": [ObjectId()], "data": b"abc", "kind": ObjectId()}

    assert json.loads(dumps(stored))["data"] == "YWJj"


def test_without_orjson_the_same_is_refused_and_taken() -> None:
    script = """
import sys
sys.modules["orjson"] = None
from superduper.errors import InvalidInput
from superduper.fields import json
assert json.orjson is None
assert json.loads(json.dumps({"a": ["\\u00e4", 1.5]})) == {"a": ["\\u00e4", 1.5]}
for text in (b"", b"\\xff", b"[" * 100_000, b"NaN", b"[-Infinity]", b"[1e999]", b'"\\\\ud800"',
             b"[9223372036854775808]", b"[12345678901234567890123]"):
    try:
        json.loads(text)
    except InvalidInput:
        continue
    raise AssertionError(text[:40])
"""
    subprocess.run([sys.executable, "-c", script], check=True)

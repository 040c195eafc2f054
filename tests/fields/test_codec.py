"""Documents in and out of BSON."""

import datetime
import decimal
import enum
import re
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import bson
import numpy as np
import pytest
import torch
from bson import SON, Binary, Code, DBRef, Decimal128, Int64, MaxKey, ObjectId, Regex, Timestamp

from superduper.errors import InvalidInput, TooLarge, UserCodeError
from superduper.fields.codec import (
    add_encoder,
    decode,
    decode_document,
    decode_input,
    encode,
    encode_document,
)

NATIVE = {
    "text": "ä\0b",
    "int": 2**63 - 1,
    "long": Int64(-(2**63)),
    "float": float("inf"),
    "bool": True,
    "none": None,
    "bytes": b"abc",
    "binary": Binary(b"abc", 128),
    "uuid": Binary.from_uuid(uuid.UUID(int=5)),
    "id": ObjectId(),
    "date": datetime.datetime(2024, 1, 2, 3, 4, 5),
    "decimal": Decimal128("1.5"),
    "regex": Regex("a", "i"),
    "pattern": re.compile("a"),
    "code": Code("f()", {"a": 1}),
    "ref": DBRef("c", 1),
    "timestamp": Timestamp(1, 2),
    "max": MaxKey(),
    "list": [1, "a", [2.5, [None]]],
    "document": {"a": {"b": [{}]}, "": 1, "dotted.key": 2},
}


def test_what_bson_has_passes_untouched() -> None:
    encoded = encode_document(NATIVE)

    assert encoded == NATIVE
    assert all(
        encoded[key] is value for key, value in NATIVE.items() if key[:2] not in ("li", "do")
    )
    assert decode_document(NATIVE) == NATIVE
    assert decode_document(bson.decode(bson.encode(encoded))).keys() == NATIVE.keys()


def test_the_document_given_is_not_changed() -> None:
    document = {"x": {"y": [torch.ones(2)]}}

    encode_document(document)

    assert isinstance(document["x"]["y"][0], torch.Tensor)


def test_rich_values_are_found_at_every_level_and_survive_bson() -> None:
    document = {"a": {"b": [torch.arange(3.0), {"c": torch.eye(2)}]}, "t": (1, torch.ones(1))}

    decoded = decode_document(bson.decode(bson.encode(encode_document(document))))

    assert torch.equal(decoded["a"]["b"][0], torch.arange(3.0))
    assert torch.equal(decoded["a"]["b"][1]["c"], torch.eye(2))
    assert decoded["t"][0] == 1
    assert torch.equal(decoded["t"][1], torch.ones(1))


def test_other_mappings_and_sequences_become_plain() -> None:
    class Row(tuple):  # as a namedtuple
        pass

    encoded = encode({"a": OrderedDict(b=SON(c=torch.ones(1))), "d": Row((1, 2)), "e": np.bool_(1)})

    assert type(encoded["a"]) is dict
    assert type(encoded["a"]["b"]) is dict
    assert encoded["d"] == [1, 2]
    assert encoded["e"] is True


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.float16(0.5), 0.5),
        (np.int64(5), 5),
        (np.uint8(5), 5),
        (np.bool_(False), False),
        (np.str_("a"), "a"),
        (np.bytes_(b"a"), b"a"),
    ],
)
def test_numpy_scalars_become_python_values(value: Any, expected: Any) -> None:
    encoded = encode([value])[0]

    assert encoded == expected
    assert type(encoded) is type(expected)


class Colour(enum.StrEnum):
    RED = "red"


def test_subclasses_of_what_bson_has_are_stored() -> None:
    bson.encode(encode_document({"a": Colour.RED, "b": enum.IntEnum("E", "X").X}))


@dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Point(1), r"Point cannot be stored: .*register an encoder"),
        ({1, 2}, "set cannot be stored: use a list"),
        (datetime.date(2024, 1, 1), r"datetime\.date cannot be stored: use datetime\.datetime"),
        (decimal.Decimal(1), r"use bson\.Decimal128"),
        (uuid.UUID(int=1), r"use bson\.Binary\.from_uuid"),
        (1j, "complex cannot be stored"),
        (print, "builtin_function_or_method cannot be stored"),
        (2**63, "does not fit into 64 bits"),
        (-(2**63) - 1, "does not fit into 64 bits"),
        (np.uint64(2**63), "does not fit into 64 bits"),
        (np.datetime64("2024-01-01T00:00:00", "ns"), "numpy datetime64"),
        (np.complex64(1), "numpy complex64"),
        (np.longdouble(1), "numpy float128"),
        ({1: 2}, r"name must be text, not int \(1\)"),
        ({"$set": 1}, r"must not start with '\$': '\$set'"),
        ({"a\0b": 1}, "must not contain NUL"),
        ("\ud800", "surrogates not allowed"),
        (["fine", {"deeper": "\ud800"}], r"1\.deeper: .*surrogates not allowed"),
    ],
)
def test_what_has_no_place_in_a_document_is_refused_with_its_path(value: Any, text: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^a\.b\.1(: |\.).*{text}"):
        encode_document({"fine": 1, "a": {"b": [0, value, 2]}})


def test_filters_and_updates_may_have_operators() -> None:
    update = {"$set": {"x": torch.ones(1)}, "$unset": {"y": ""}}

    encoded = encode(update)

    assert encoded == {"$set": {"x": encode(torch.ones(1))}, "$unset": {"y": ""}}
    with pytest.raises(InvalidInput, match=r"^\$set: a field's name must be text"):
        encode({"$set": {5: 1}})


def test_lists_of_large_numbers_are_checked_too() -> None:
    assert encode([2**62, 5]) == [2**62, 5]
    with pytest.raises(InvalidInput, match=r"^1: the integer"):
        encode([5, 2**64])
    with pytest.raises(InvalidInput, match=r"^1: the integer"):
        encode([5.0, -(2**64)])


def test_messages_stay_short() -> None:
    with pytest.raises(InvalidInput) as caught:
        encode_document({"k" * 10_000: {"$" + "x" * 10_000: 1}})
    assert len(str(caught.value)) < 400


def test_a_document_must_be_one() -> None:
    with pytest.raises(InvalidInput, match="a document must be a dict, not a list"):
        encode_document([1])  # type: ignore[arg-type]


def test_endless_and_deep_documents_are_refused() -> None:
    document: dict[str, Any] = {}
    document["self"] = document

    with pytest.raises(InvalidInput, match="nested more than 100 levels deep"):
        encode_document(document)


def test_a_document_over_16_mb_is_too_large() -> None:
    limit = 16 * 1024 * 1024
    room = limit - len(bson.encode({"x": b""})) - len(bson.encode({"_id": ObjectId()})) + 5

    encode_document({"x": bytes(room)})
    with pytest.raises(TooLarge, match=r"16,777,217 bytes and MongoDB takes 16,777,216"):
        encode_document({"x": bytes(room + 1)})
    with pytest.raises(TooLarge, match="bytes"):
        encode_document({"x": torch.zeros(5_000_000)})


def test_decoding_shares_what_needs_no_change() -> None:
    numbers = [1.0] * 10

    assert decode({"a": numbers})["a"] is numbers


def test_a_model_is_given_arrays_at_every_level() -> None:
    given = decode_input({"a": {"b": [1.0, 2.0]}, "c": "text", "d": [{"e": [1]}]}, "torch")

    assert torch.equal(given["a"]["b"], torch.tensor([1.0, 2.0]))
    assert given["c"] == "text"
    assert torch.equal(given["d"][0]["e"], torch.tensor([1]))


@dataclass
class Place:
    x: int


def test_encoders_teach_types() -> None:
    add_encoder("place", Place, lambda place: {"x": place.x, "t": torch.ones(1)}, lambda _: None)

    bson.encode(encode({"a": [Place(5)]}))

    add_encoder("place", Place, lambda place: [place.x], lambda data: Place(data[0]))
    stored = {"a": [{"encoder": "place", "data": [5]}]}
    assert encode({"a": [Place(5)]}) == stored
    assert decode(stored) == {"a": [Place(5)]}
    assert decode_input(stored["a"][0]) == Place(5)
    unknown = {"encoder": "unheard of", "data": [5]}
    assert decode(unknown) == unknown


def test_an_encoder_that_raises_is_named() -> None:
    class Odd:
        pass

    add_encoder("odd", Odd, lambda _: 1 / 0, lambda _: Odd())

    with pytest.raises(UserCodeError, match=r"^a\.0: the encoder 'odd' raised ZeroDivisionError"):
        encode_document({"a": [Odd()]})


def test_what_an_encoder_makes_is_checked() -> None:
    class Lazy:
        pass

    add_encoder("lazy", Lazy, lambda value: value.__class__, lambda _: Lazy())

    with pytest.raises(InvalidInput, match=r"^a: a value of type type cannot be stored"):
        encode_document({"a": Lazy()})

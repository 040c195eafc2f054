"""Arrays in documents, with torch and numpy."""

import io
import subprocess
import sys
from typing import Any

import bson
import numpy as np
import pytest
import torch
from bson.binary import Binary, BinaryVectorDtype

from superduper.errors import InvalidInput
from superduper.fields import tensors
from superduper.fields.codec import decode, decode_input, encode

SHAPES: list[tuple[int, ...]] = [(), (0,), (5,), (9,), (2, 3), (0, 3), (2, 3, 4)]


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return type(left) is type(right) and left.dtype == right.dtype and torch.equal(left, right)
    return type(left) is type(right) and left.dtype == right.dtype and np.array_equal(left, right)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", sorted(tensors.ITEM_SIZES))
def test_torch_tensors_come_back_as_they_went_in(name: str, shape: tuple[int, ...]) -> None:
    tensor = (torch.randn(shape) * 5).abs().to(getattr(torch, name))

    decoded = decode(encode(tensor))

    assert same(decoded, tensor)
    decoded.zero_()  # it is writable, and a copy


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", sorted(set(tensors.ITEM_SIZES) - {"bfloat16"}))
def test_numpy_arrays_come_back_as_they_went_in(name: str, shape: tuple[int, ...]) -> None:
    array = np.asarray(np.abs(np.random.randn(*shape) * 5)).astype(name)

    decoded = decode(encode(array), arrays="numpy")

    assert same(decoded, array)
    decoded[...] = 0


@pytest.mark.parametrize("array", [np.ones((2, 2), "float32"), np.ones(3), np.ones((), "int8")])
def test_numpy_stays_numpy_where_torch_is_loaded_too(array: Any) -> None:
    assert same(decode(encode(array)), array)


@pytest.mark.parametrize(
    ("name", "kind"), [("float32", BinaryVectorDtype.FLOAT32), ("int8", BinaryVectorDtype.INT8)]
)
def test_vectors_are_those_of_pymongo(name: str, kind: BinaryVectorDtype) -> None:
    array = np.arange(-5, 6).astype(name)

    encoded = encode(array)

    assert encoded == Binary.from_vector(array.tolist(), kind)
    assert same(decode(encoded), torch.from_numpy(array))
    assert tensors.vector_numbers(encoded) == array.tolist()


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 21])
def test_vectors_of_bits_are_those_of_pymongo(count: int) -> None:
    bits = np.random.rand(count) < 0.5

    encoded = encode(bits)

    assert encoded == Binary.from_vector(
        np.packbits(bits).tolist(), BinaryVectorDtype.PACKED_BIT, -count % 8
    )
    assert same(decode(encoded), torch.from_numpy(bits))
    assert same(decode(encoded, arrays="numpy"), bits)
    assert tensors.vector_numbers(encoded) == bits.astype(int).tolist()


def test_the_form_of_other_arrays_is_fixed() -> None:
    array = np.array([[1, 2], [3, 4]], "int16")

    assert encode(array) == {
        "dtype": "int16",
        "shape": [2, 2],
        "data": b"\1\0\2\0\3\0\4\0",
        "kind": "numpy",
    }
    assert encode(torch.from_numpy(array))["kind"] == "torch"
    assert encode(array) == bson.decode(bson.encode({"x": encode(array)}))["x"]


@pytest.mark.parametrize("form", [bytes, Binary])
def test_data_may_be_bytes_or_binary_and_kind_may_be_absent(form: type) -> None:
    stored = {"dtype": "int16", "shape": [1, 2], "data": form(b"\1\0\2\0")}

    assert same(decode(stored), torch.tensor([[1, 2]], dtype=torch.int16))
    assert same(decode(stored, arrays="numpy"), np.array([[1, 2]], "int16"))


def test_an_explicit_library_wins_over_what_was_stored() -> None:
    array = np.ones((2, 2))

    assert same(decode(encode(array), arrays="torch"), torch.from_numpy(array))
    assert same(decode(encode(torch.from_numpy(array)), arrays="numpy"), array)


def test_views_gradients_and_byte_orders_do_not_matter() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    parameter = torch.nn.Parameter(base.clone())
    complex_view = torch.tensor([[1 + 2j]]).conj()

    assert torch.equal(decode(encode(base.T)), base.T)
    assert torch.equal(decode(encode(base[:, 1])), base[:, 1])
    assert torch.equal(decode(encode(parameter)), base)
    assert torch.equal(decode(encode(complex_view)), complex_view)
    assert same(decode(encode(np.asfortranarray(base.numpy()))), base.numpy())
    assert same(decode(encode(np.arange(3, dtype=">f4")), arrays="numpy"), np.arange(3, dtype="f4"))
    assert same(decode(encode(np.ones((2, 2), dtype=">i8"))), np.ones((2, 2), dtype="i8"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.array(["a", "b"]), "datatype 'str"),
        (np.array([{}]), "datatype 'object'"),
        (np.array(["2024-01-01"], "datetime64[D]"), "datatype 'datetime64"),
        (np.zeros(2, "longdouble"), "datatype 'float128'"),
        (np.ma.array([1, 2], mask=[0, 1]), "masked array"),
        (torch.eye(2).to_sparse(), "sparse_coo"),
        (torch.zeros(2, device="meta"), "meta device"),
        (torch.zeros(2).to(torch.float8_e4m3fn), "float8"),
        (
            torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)], layout=torch.jagged),
            "dense",
        ),
    ],
)
def test_arrays_without_plain_bytes_are_refused(value: Any, text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        encode({"x": value})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"dtype": "object"}, "unknown tensor dtype 'object'"),
        ({"dtype": "x" * 5000}, "unknown tensor dtype 'x{40}'"),
        ({"shape": [3]}, r"shape \[3\] needs 12 bytes of data, but there are 8"),
        ({"shape": [10**12, 64]}, "needs 256000000000000 bytes"),
        ({"shape": [10**30]}, "must be a list of integers"),
        ({"shape": [0, 2**47, 2**47]}, "too large"),
        ({"shape": [-1, -2]}, "not negative"),
        ({"shape": [2.0]}, "list of integers"),
        ({"shape": [True, 2]}, "list of integers"),
        ({"shape": [1] * 40}, "40 dimensions"),
        ({"data": b""}, "but there are 0"),
    ],
)
def test_damaged_tensors_are_named_and_allocate_nothing(change: dict[str, Any], text: str) -> None:
    stored = {"dtype": "float32", "shape": [2], "data": b"\0" * 8} | change

    with pytest.raises(InvalidInput, match=rf"^a\.1\.b: .*{text}") as caught:
        decode({"a": [1, {"b": stored}]})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "data",
    [b"", b"\x27", b"\x27\x00123", b"\x27\x011234", b"\x99\x00", b"\x10\x08\x00", b"\x10\x01"],
)
def test_damaged_vectors_are_named(data: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"^a: .*vector"):
        decode({"a": Binary(data, 9)})


@pytest.mark.parametrize(
    "document",
    [
        {"dtype": "float32", "shape": [2]},
        {"dtype": "float32", "shape": [2], "data": "text"},
        {"dtype": "float32", "shape": "2", "data": b""},
        {"dtype": 1, "shape": [2], "data": b""},
        {"dtype": "float32", "shape": [0], "data": b"", "more": 1},
    ],
)
def test_documents_that_only_resemble_a_tensor_stay_as_they_are(document: dict[str, Any]) -> None:
    assert decode(document) == document


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1, 2], torch.tensor([1, 2])),
        ([1, 2.5], torch.tensor([1.0, 2.5])),
        ([True, False], torch.tensor([True, False])),
        ([[1.0, 2.0], [3.0, 4.0]], torch.tensor([[1.0, 2.0], [3.0, 4.0]])),
    ],
)
def test_a_model_is_given_arrays_for_lists_of_numbers(value: list[Any], expected: Any) -> None:
    assert same(decode_input(value, "torch"), expected)
    assert decode(value) == value


def test_numpy_models_are_given_float64() -> None:
    assert same(decode_input([0.1, 2], "numpy"), np.array([0.1, 2.0]))


@pytest.mark.parametrize("value", [[], [[], []], ["a"], [1, None], [1, "a" * 100], [{"a": "b"}]])
def test_other_lists_stay_lists(value: list[Any]) -> None:
    assert decode_input(value) == value


def test_rows_of_different_length_are_a_list_as_they_are() -> None:
    assert decode_input([[1, 2], [3]]) == [[1, 2], [3]]


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3, dtype=">i4"),
        np.zeros((0, 2)),
        np.array(5),
    ],
)
def test_a_model_is_given_the_array_in_npy_bytes(array: Any) -> None:
    data = npy(array)

    for form in (data, Binary(data)):
        decoded = decode_input({"x": form}, "numpy")["x"]
        assert same(decoded, array.astype(array.dtype.newbyteorder("=")))
        assert isinstance(decode_input(form, "torch"), torch.Tensor)
        assert decode(form) is form


@pytest.mark.parametrize(
    "data",
    [
        npy(np.arange(3))[:-1],
        npy(np.arange(3))[:20],
        npy(np.arange(3)).replace(b"(3,), ", b"(10000000000000,), "),
        npy(np.array(["a", "b"])),
        b"\x93NUMPY",
        b"\x93NUMPY\x09\x00garbage",
        npy(np.arange(3)).replace(b"'descr'", b"'\xff\xfe\xfd\xfc\xfb'"),
    ],
)
def test_damaged_npy_bytes_are_named(data: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"^x: "):
        decode_input({"x": data})


def test_npy_bytes_are_never_unpickled() -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([object], dtype=object), allow_pickle=True)

    with pytest.raises(InvalidInput, match="object"):
        decode_input(stream.getvalue())


def test_the_library_is_chosen_by_what_the_process_uses() -> None:
    script = """
import sys
from superduper.fields.codec import decode, decode_document, encode
from bson.binary import Binary
vector = Binary(b"\\x27\\x00" + bytes(8), 9)
assert encode({"a": [1, "b", vector]}) == {"a": [1, "b", vector]}
assert "numpy" not in sys.modules and "torch" not in sys.modules
assert type(decode(vector)).__module__ == "numpy"
stored = {"dtype": "float64", "shape": [1, 1], "data": bytes(8), "kind": "numpy"}
assert type(decode(stored)).__module__ == "numpy"
assert "torch" not in sys.modules
assert type(decode(stored | {"kind": "torch"})).__module__ == "torch"
assert type(decode(vector)).__module__ == "torch"
assert type(decode(stored)).__module__ == "numpy"
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_without_any_library_values_stay_as_they_are() -> None:
    script = """
import sys
sys.modules["numpy"] = sys.modules["torch"] = None
from superduper.errors import MissingExtra
from superduper.fields.codec import decode, decode_input
from bson.binary import Binary
vector = Binary(b"\\x27\\x00" + bytes(8), 9)
stored = {"dtype": "bfloat16", "shape": [1], "data": bytes(2), "kind": "torch"}
assert decode({"a": vector, "b": stored}) == {"a": vector, "b": stored}
assert decode_input({"a": [1, 2]}) == {"a": [1, 2]}
try:
    decode(vector, "torch")
except MissingExtra as error:
    assert "pip install 'superduper-imputations[torch]'" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], check=True)

"""Training records on disk: one mapped file per tensor, filled once, read in any order.

A record is two samples (what the model and the loss are given: a tensor, or tuples and dicts of
tensors) and a few raw values. Tensors go into one file per place in the sample; the raw values,
as BSON, into one file beside them. Memory does not grow with the records, but for eight bytes each.
Sealed records can be saved, which writes an index with the hash of each file, and opened again.
"""

import warnings
from array import array
from collections.abc import Iterator, Mapping
from hashlib import file_digest, sha256
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO, Self

import bson
import torch

from superduper.errors import InvalidInput
from superduper.training.graph import Frame

RAW = "raw.bson"
OFFSETS = "offsets.bin"
INDEX = "index.bson"
_COPY_RECORDS = 4_096


class Column:
    """The tensors of one place in a sample, all of one shape."""

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: torch.dtype, n: int | None = None
    ) -> None:
        self.path = path
        self.shape = shape
        self.dtype = dtype
        self.n = n or 0
        self._data: torch.Tensor | None = None
        if n is None:
            self._file = path.open("wb", buffering=1 << 20)
        else:
            self._map()

    @property
    def index(self) -> dict[str, Any]:
        """What `Column` needs to open the sealed file again."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"file": self.path.name, "shape": list(self.shape), "dtype": dtype}

    def append(self, tensor: torch.Tensor) -> None:
        """Add a record's tensor; a column of whole numbers becomes one of floats if it has to."""
        if tensor.dtype != self.dtype:
            wider = torch.promote_types(tensor.dtype, self.dtype)
            if wider != self.dtype:
                self._widen(wider)
            tensor = tensor.to(wider)
        self._file.write(_bytes_of(tensor))
        self.n += 1

    def _widen(self, dtype: torch.dtype) -> None:
        """Write the column once more with another datatype, in pieces."""
        self.seal()
        narrow = self._data
        wide = self.path.with_suffix(".wide")
        self._file, self.dtype, self._data = wide.open("wb", buffering=1 << 20), dtype, None
        if narrow is not None:
            for first in range(0, self.n, _COPY_RECORDS):
                piece = narrow[first : first + _COPY_RECORDS]
                self._file.write(_bytes_of(piece.to(dtype)))
        wide.rename(self.path)

    def seal(self) -> None:
        """Nothing more is added; map the file."""
        self._file.close()
        self._map()

    def _map(self) -> None:
        count = self.n
        for size in self.shape:
            count *= size
        flat = self._mapped(count) if count else torch.empty(0, dtype=self.dtype)
        self._data = flat.view(self.n, *self.shape)

    def _mapped(self, count: int) -> torch.Tensor:
        """The file as a tensor that is only read: kept records belong to later fits as well."""
        with self.path.open("rb") as file:
            mapped = mmap(file.fileno(), 0, access=ACCESS_READ)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it cannot be written to; `gather` copies
            return torch.frombuffer(mapped, dtype=self.dtype, count=count)

    def gather(self, index: torch.Tensor, pinned: bool) -> torch.Tensor:
        """The tensors of several records, stacked."""
        assert self._data is not None  # sealed
        if not pinned:
            return self._data.index_select(0, index)
        # Straight into memory that a GPU can fetch from by itself, without a copy in between.
        shape = (len(index), *self.shape)
        stacked = torch.empty(shape, dtype=self.dtype, pin_memory=True)
        return torch.index_select(self._data, 0, index, out=stacked)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data


class Columns:
    """The columns of a sample of fixed form: a tensor, or a tuple or dict of such."""

    def __init__(self, tree: Any, columns: list[Column]) -> None:
        self._tree = tree
        self.columns = columns

    @classmethod
    def like(cls, sample: Any, folder: Path, name: str) -> Self:
        """Empty columns in the form of a sample."""
        made = cls(None, [])
        made._tree = made._of(folder, name, sample)
        return made

    @classmethod
    def opened(cls, folder: Path, index: Mapping[str, Any], n: int) -> Self:
        """Sealed columns whose `index` was saved."""
        columns = [
            Column(folder / each["file"], tuple(each["shape"]), getattr(torch, each["dtype"]), n)
            for each in index["columns"]
        ]
        return cls(_tree_of(index["tree"], iter(columns)), columns)

    @property
    def index(self) -> dict[str, Any]:
        """What `opened` needs."""
        return {"tree": _form_of(self._tree), "columns": [each.index for each in self.columns]}

    def _of(self, folder: Path, name: str, part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            path = folder / f"{name}-{len(self.columns)}.bin"
            self.columns.append(Column(path, tuple(part.shape), part.dtype))
            return self.columns[-1]
        if isinstance(part, Mapping):
            return {key: self._of(folder, name, value) for key, value in part.items()}
        return tuple(self._of(folder, name, value) for value in part)

    def append(self, sample: Any) -> None:
        """Add a record's sample, whose form must have been found equal."""
        self._append(self._tree, sample)

    def _append(self, tree: Any, sample: Any) -> None:
        if isinstance(tree, Column):
            tree.append(sample)
        elif isinstance(tree, dict):
            for key, branch in tree.items():
                self._append(branch, sample[key])
        else:
            for branch, part in zip(tree, sample, strict=True):
                self._append(branch, part)

    def seal(self) -> None:
        """Nothing more is added."""
        for column in self.columns:
            column.seal()

    def gather(self, index: torch.Tensor, pinned: bool) -> Any:
        """The batch of several records, in the form of a sample."""
        return self._gather(self._tree, index, pinned)

    def _gather(self, tree: Any, index: torch.Tensor, pinned: bool) -> Any:
        if isinstance(tree, Column):
            return tree.gather(index, pinned)
        if isinstance(tree, dict):
            return {key: self._gather(branch, index, pinned) for key, branch in tree.items()}
        return tuple(self._gather(branch, index, pinned) for branch in tree)


def _form_of(tree: Any) -> Any:
    """A tree without its columns: None for a column, pairs for a dict, a list for a tuple."""
    if isinstance(tree, Column):
        return None
    if isinstance(tree, dict):
        return {"keys": list(tree), "parts": [_form_of(branch) for branch in tree.values()]}
    return [_form_of(branch) for branch in tree]


def _tree_of(form: Any, columns: Iterator[Column]) -> Any:
    """The tree of a form, with the columns in their places."""
    if form is None:
        return next(columns)
    if isinstance(form, dict):
        return {
            key: _tree_of(part, columns)
            for key, part in zip(form["keys"], form["parts"], strict=True)
        }
    return tuple(_tree_of(part, columns) for part in form)


class Fold:
    """The records of one fold, with the hash of the data they were made from."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.n = 0
        self._x: Columns | None = None
        self._y: Columns | None = None
        self._digest = sha256()
        self._hash = ""
        self._offsets = array("q")
        self._raw: BinaryIO = (folder / RAW).open("w+b", buffering=1 << 20)

    @classmethod
    def opened(cls, folder: Path) -> Self:
        """Records that were saved.

        Raises OSError or InvalidInput if a file is missing or not what was saved.
        """
        index = bson.decode((folder / INDEX).read_bytes())
        for name, digest in index["files"].items():
            if _file_hash(folder / name) != digest:
                raise InvalidInput(f"{folder / name} is not what was saved")
        fold = cls.__new__(cls)
        fold.folder, fold.n, fold._hash = folder, index["n"], index["hash"]
        fold._x, fold._y = (
            None if index[name] is None else Columns.opened(folder, index[name], fold.n)
            for name in ("x", "y")
        )
        fold._offsets = array("q", (folder / OFFSETS).read_bytes())
        fold._raw = (folder / RAW).open("rb")
        return fold

    def save(self) -> None:
        """Write the index of the sealed records, by which `opened` finds them."""
        (self.folder / OFFSETS).write_bytes(self._offsets.tobytes())
        samples = [each for each in (self._x, self._y) if each is not None]
        names = [column.path.name for sample in samples for column in sample.columns]
        index = {
            "n": self.n,
            "hash": self.hash,
            "x": self._x and self._x.index,
            "y": self._y and self._y.index,
            "files": {name: _file_hash(self.folder / name) for name in (RAW, OFFSETS, *names)},
        }
        (self.folder / INDEX).write_bytes(bson.encode(index))

    @property
    def hash(self) -> str:
        """SHA-256 over ids, inputs and targets, in order."""
        return self._hash or self._digest.hexdigest()

    def append(self, x: Any, y: Any, raw: bytes, data: bytes) -> None:
        """Add a record: its two samples, what `raw` answers for it, what counts for the hash."""
        if self._x is None or self._y is None:
            self._x = Columns.like(x, self.folder, "x")
            self._y = Columns.like(y, self.folder, "y")
        self._x.append(x)
        self._y.append(y)
        self._offsets.append(self._raw.tell())
        self._raw.write(raw)
        self._digest.update(data)
        self.n += 1

    def seal(self) -> None:
        """Nothing more is added; records can be read."""
        for columns in (self._x, self._y):
            if columns is not None:
                columns.seal()
        self._raw.flush()

    def gather(self, index: torch.Tensor, *, pinned: bool = False) -> Frame:
        """The batch of several records: `x` and `y`; `pinned` for who copies it to a GPU."""
        if self._x is None or self._y is None:
            raise InvalidInput(f"fold {self.folder.name!r} has no records")
        return {"x": self._x.gather(index, pinned), "y": self._y.gather(index, pinned)}

    def raw(self, index: torch.Tensor) -> Iterator[dict[str, Any]]:
        """The raw values of several records."""
        for position in index.tolist():
            self._raw.seek(self._offsets[position])
            size = self._raw.read(4)
            yield bson.decode(size + self._raw.read(int.from_bytes(size, "little") - 4))

    def close(self) -> None:
        """Close the file of raw values."""
        self._raw.close()


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def layout(sample: Any) -> Any:
    """What all records of a fit must share: the parts of a sample and their shapes.

    Raises InvalidInput for what cannot be kept as tensors.
    """
    if isinstance(sample, torch.Tensor):
        return tuple(sample.shape)
    if isinstance(sample, Mapping) and sample:
        return tuple((key, layout(part)) for key, part in sample.items())
    if isinstance(sample, tuple) and sample:
        return ("tuple", *(layout(part) for part in sample))
    raise InvalidInput(
        f"{type(sample).__name__} is no tensor, number, array, tuple or dict of these"
    )

"""What the pickles of torch and joblib may say: tensors, storages, ordered dictionaries and little else.

Tensors come out as `TensorRecord`s, checked descriptions of a view into a `Storage`, whose bytes are still a slice of
the file. Nothing of the size of a tensor is allocated here.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from hf_paraminit.errors import CheckpointError, UnsafeFileError
from hf_paraminit.io.pickle_machine import (
    Attributes,
    Budget,
    Callee,
    Discarded,
    PickleMachine,
    Whitelist,
    describe,
    refuse_persistent_id,
)

# The header of torch.save before torch 1.6 (torch/serialization.py): a magic number and a format version.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_DIMENSIONS = 8
MAX_EMPTY_EXTENT = 2**40  # product of the other dimensions of a tensor without elements


@dataclass(frozen=True, slots=True, eq=False)
class StorageType:
    """The class of a storage: only its dtype matters, and nothing is called."""

    name: str
    dtype: torch.dtype


@dataclass(slots=True, eq=False)
class Storage:
    """A run of `numel` elements; `data` are its bytes in the file, `crc32` their checksum if the container has one."""

    dtype: torch.dtype
    numel: int
    data: memoryview | None = None
    crc32: int | None = None

    @property
    def num_bytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def attach(self, data: memoryview, *, crc32: int | None = None) -> None:
        """Give the storage its bytes.

        Raises:
            CheckpointError: the length is not that of `numel` elements.
        """
        if len(data) != self.num_bytes:
            raise CheckpointError(
                f"a storage of {self.numel:,} elements of {self.dtype} needs {self.num_bytes:,} bytes, "
                f"found {len(data):,}"
            )
        self.data = data
        self.crc32 = crc32


@dataclass(frozen=True, slots=True, eq=False)
class TensorRecord:
    """A strided view into a storage, known to stay inside it. Offset and strides count elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.size)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _rebuild_tensor(arguments: tuple[Any, ...]) -> TensorRecord:
    """`torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks)`."""
    if len(arguments) != 6:
        raise CheckpointError(f"a tensor described by {len(arguments)} values, expected 6")
    storage, offset, size, stride, requires_grad, hooks = arguments
    if not isinstance(storage, Storage):
        raise CheckpointError(f"a tensor over a {describe(storage)}, expected a storage")
    if not (isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= MAX_DIMENSIONS):
        raise CheckpointError(f"a tensor whose size and stride are not tuples of one length up to {MAX_DIMENSIONS}")
    if not all(_is_count(value) for value in (offset, *size, *stride)):
        raise CheckpointError("a tensor with an offset, size or stride that is not a count")
    if not (isinstance(requires_grad, bool) and isinstance(hooks, dict) and not hooks):
        raise CheckpointError("a tensor with backward hooks or an odd requires_grad flag")
    record = TensorRecord(storage, offset, size, stride)
    _check_bounds(record)
    return record


def _check_bounds(record: TensorRecord) -> None:
    last = record.offset + sum((size - 1) * stride for size, stride in zip(record.size, record.stride, strict=True))
    if record.numel == 0:
        fits = (
            record.offset <= record.storage.numel
            and math.prod(max(size, 1) for size in record.size) <= MAX_EMPTY_EXTENT
        )
    else:
        fits = last < record.storage.numel and record.numel <= record.storage.numel
    if not fits:
        raise UnsafeFileError(
            f"a tensor of size {record.size}, stride {record.stride} at offset {record.offset} reaches outside its "
            f"storage of {record.storage.numel} elements, or is larger than it"
        )


def _rebuild_parameter(arguments: tuple[Any, ...]) -> TensorRecord:
    """`torch._utils._rebuild_parameter(tensor, requires_grad, backward_hooks)`: just the tensor."""
    if len(arguments) != 3 or not isinstance(arguments[0], TensorRecord):
        raise CheckpointError("a parameter that is not (tensor, requires_grad, hooks)")
    return arguments[0]


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if arguments:
        raise CheckpointError("an OrderedDict made from arguments, expected an empty one that is filled later")
    return {}


def _namespace(arguments: tuple[Any, ...]) -> Attributes:
    if arguments:
        raise CheckpointError("an argparse.Namespace made from arguments, expected an empty one that is filled later")
    return Attributes()


def _empty_bytes(arguments: tuple[Any, ...]) -> memoryview:
    if arguments:
        raise UnsafeFileError("it asks to call bytes with arguments; only the empty byte string is written that way")
    return memoryview(b"")


def _discard(arguments: tuple[Any, ...]) -> Discarded:
    return Discarded()


def _latin1_encoder(budget: Budget) -> Callable[[tuple[Any, ...]], memoryview]:
    """Protocol 2 has no byte strings and writes them as `_codecs.encode(text, "latin1")`."""

    def encode(arguments: tuple[Any, ...]) -> memoryview:
        if len(arguments) != 2 or not isinstance(arguments[0], str) or not isinstance(arguments[1], str):
            raise CheckpointError("_codecs.encode without a text and the name of an encoding")
        text, encoding = arguments
        if encoding != "latin1":
            raise UnsafeFileError(f"it asks for the codec {encoding!r:.40}, only 'latin1' is allowed")
        budget.spend_text(len(text))
        try:
            return memoryview(text.encode("latin-1"))
        except UnicodeEncodeError as error:
            raise CheckpointError("bytes spelled as text with characters above 255") from error

    return encode


_STORAGE_TYPES: Whitelist = MappingProxyType(
    {
        ("torch", f"{name}Storage"): StorageType(f"torch.{name}Storage", dtype)
        for name, dtype in {
            "Float": torch.float32,
            "Double": torch.float64,
            "Half": torch.float16,
            "BFloat16": torch.bfloat16,
            "Long": torch.int64,
            "Int": torch.int32,
            "Short": torch.int16,
            "Char": torch.int8,
            "Byte": torch.uint8,
            "Bool": torch.bool,
        }.items()
    }
)
_CALLEES: Mapping[tuple[str, str], Callable[[tuple[Any, ...]], object]] = MappingProxyType(
    {
        ("collections", "OrderedDict"): _ordered_dict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        ("argparse", "Namespace"): _namespace,
        ("builtins", "bytes"): _empty_bytes,
        ("numpy", "dtype"): _discard,
        ("numpy._core.multiarray", "scalar"): _discard,
        ("numpy.core.multiarray", "scalar"): _discard,
    }
)


def _callee_whitelist(budget: Budget) -> dict[tuple[str, str], object]:
    callees = {**_CALLEES, ("_codecs", "encode"): _latin1_encoder(budget)}
    return {pair: Callee(".".join(pair), build) for pair, build in callees.items()}


def _storage_from_id(identifier: object, *, length: int) -> tuple[str, Storage]:
    """Read the tuple ("storage", class, key, location, numel[, None]) into the key and a storage without bytes yet."""
    if not (isinstance(identifier, tuple) and len(identifier) == length and identifier[0] == "storage"):
        raise UnsafeFileError("it refers to an outside object that is not a storage")
    _, kind, key, location, numel = identifier[:5]
    if not (isinstance(kind, StorageType) and isinstance(key, str) and isinstance(location, str) and _is_count(numel)):
        raise CheckpointError("a storage without class, key, location and number of elements")
    if any(rest is not None for rest in identifier[5:]):
        raise CheckpointError("a storage that is a view of another storage, which torch no longer writes")
    return key, Storage(kind.dtype, numel)


class StorageTable:
    """The storages that one pickle refers to, by key; tensors that share a storage get the same object.

    Args:
        id_length: number of entries of a persistent id: 5 in zip archives, 6 in older files.
    """

    def __init__(self, id_length: int) -> None:
        self._id_length = id_length
        self.storages: dict[str, Storage] = {}

    def persistent_load(self, identifier: object) -> Storage:
        key, storage = _storage_from_id(identifier, length=self._id_length)
        known = self.storages.setdefault(key, storage)
        if (known.dtype, known.numel) != (storage.dtype, storage.numel):
            raise CheckpointError(f"the storage {key:.40} is described in two ways")
        return known


def read_joblib_pickle(data: memoryview, budget: Budget) -> Any:
    """Read a file of `joblib.dump` or `pickle.dump`: one pickle, in which each storage is an old torch file of its own.

    Raises:
        CheckpointError: damaged bytes.
        UnsafeFileError: something outside the whitelist.
    """

    def load_from_bytes(arguments: tuple[Any, ...]) -> Storage:
        if len(arguments) != 1 or not isinstance(arguments[0], memoryview):
            raise CheckpointError("torch.storage._load_from_bytes without a byte string")
        # The whitelist of the inner file has no callee at all, hence no second level of nesting.
        storage = read_legacy_file(arguments[0], _STORAGE_TYPES, budget)
        if not isinstance(storage, Storage):
            raise CheckpointError(f"a {describe(storage)} where the bytes of a storage were expected")
        return storage

    name = ("torch.storage", "_load_from_bytes")
    whitelist = {**_callee_whitelist(budget), name: Callee(".".join(name), load_from_bytes)}
    machine = PickleMachine(data, whitelist, budget)
    value = machine.run()
    _check_end(machine.position, data)
    return value


def read_torch_pickle(data: memoryview, budget: Budget, storages: StorageTable) -> Any:
    """Read `data.pkl` of a torch archive; the bytes of `storages` are still to be attached.

    Raises:
        CheckpointError: damaged bytes.
        UnsafeFileError: something outside the whitelist.
    """
    whitelist = {**_STORAGE_TYPES, **_callee_whitelist(budget)}
    machine = PickleMachine(data, whitelist, budget, persistent_load=storages.persistent_load)
    value = machine.run()
    _check_end(machine.position, data)
    return value


def read_torch_legacy(data: memoryview, budget: Budget) -> Any:
    """Read a file of `torch.save` from before torch 1.6, or written with `_use_new_zipfile_serialization=False`."""
    return read_legacy_file(data, {**_STORAGE_TYPES, **_callee_whitelist(budget)}, budget)


def is_torch_legacy(data: memoryview) -> bool:
    """Whether the first pickle holds the magic number, whatever protocol wrote it."""
    magic = LEGACY_MAGIC.to_bytes(10, "little")
    return b"\x8a\x0a" + magic + b"." in bytes(data[:32])


def read_legacy_file(data: memoryview, whitelist: Whitelist, budget: Budget) -> Any:
    """Read the five pickles (magic number, version, system, value, storage keys) and the raw storages after them.

    Raises:
        CheckpointError: damaged bytes, or a file of a big-endian machine.
        UnsafeFileError: something outside the whitelist.
    """
    position = 0

    def next_pickle(allowed: Whitelist, persistent_load: Callable[[object], object] = refuse_persistent_id) -> Any:
        nonlocal position
        machine = PickleMachine(data, allowed, budget, position=position, persistent_load=persistent_load)
        value = machine.run()
        position = machine.position
        return value

    table = StorageTable(id_length=6)
    magic, version, system = (next_pickle({}) for _ in range(3))
    if (type(magic), magic) != (int, LEGACY_MAGIC) or (type(version), version) != (int, LEGACY_PROTOCOL):
        raise CheckpointError("an old torch file without its magic number or of another version than 1001")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("an old torch file that does not say it is little-endian; big-endian files are not read")
    value = next_pickle(whitelist, table.persistent_load)
    keys = next_pickle({})
    _attach_legacy_storages(data, position, keys, table.storages)
    return value


def _attach_legacy_storages(data: memoryview, position: int, keys: object, storages: dict[str, Storage]) -> None:
    """Each storage is an 8-byte count of elements and their raw bytes, in the order of the key list."""
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise CheckpointError("a list of storage keys was expected")
    if len(keys) != len(storages) or set(keys) != storages.keys():
        raise CheckpointError(f"{len(keys):,} storages are listed, {len(storages):,} are used, and they do not match")
    for key in keys:
        storage = storages[key]
        count = int.from_bytes(data[position : position + 8], "little")
        if count != storage.numel:
            raise CheckpointError(f"the storage {key:.40} has {count:,} elements, expected {storage.numel:,}")
        position += 8
        storage.attach(data[position : position + storage.num_bytes])
        position += storage.num_bytes
    _check_end(position, data)


def _check_end(position: int, data: memoryview) -> None:
    if position != len(data):
        raise CheckpointError(f"{len(data) - position:,} unexpected bytes after the end of the data")

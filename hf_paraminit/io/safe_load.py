"""Reading checkpoints that other software wrote as pickles, without unpickling them.

Understood are files of joblib (the published GHN-3 weights), plain or compressed, archives of `torch.save`, and its
older files that are no archives. All go through the interpreter of `pickle_machine`, which knows the names of tensors
and plain containers and calls none of them. There is no switch to load a file any other way.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_paraminit.errors import CheckpointError, PredictorNotFoundError, UnsafeFileError
from hf_paraminit.io.containers import (
    ZipEntry,
    check_crc32,
    detect_compression,
    inflate,
    map_file,
    read_zip,
)
from hf_paraminit.io.pickle_machine import Attributes, Budget, describe
from hf_paraminit.io.pickle_tensors import (
    Storage,
    StorageTable,
    TensorRecord,
    is_torch_legacy,
    read_joblib_pickle,
    read_torch_legacy,
    read_torch_pickle,
)

MAX_BYTES = 16 << 30  # six times the largest published GHN
MAX_PLAIN_VALUES = 100_000  # in the config and the metadata together
MAX_PLAIN_DEPTH = 32

_WAY_OUT = "convert it with the software that wrote it and save the tensors as safetensors"
_DROPPED = object()
_NOT_METADATA = {"state_dict", "model_ema", "config", "optimizer", "optimzer"}  # the last is how ppuda spells it


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignCheckpoint:
    """The content of a checkpoint that another program wrote.

    Attributes:
        state_dict: tensors on the CPU in memory of their own, in the order of the file. Tensors that shared memory when
            they were saved share it here, too.
        config: the file's `config` as JSON values (tuples become lists), None if there is none.
        metadata: the other entries, such as `epoch`, `step` and `args`, as JSON values. Optimizer states, tensors and
            numpy values are left out.
        container: "joblib", "joblib-" and the compression, "torch-zip" or "torch-legacy".
        sha256: of the file, in hexadecimal.
    """

    state_dict: dict[str, Tensor]
    config: dict[str, Any] | None
    metadata: dict[str, Any]
    container: str
    sha256: str


def read_checkpoint(path: str | Path, *, max_bytes: int = MAX_BYTES) -> ForeignCheckpoint:
    """Read a GHN checkpoint of joblib or torch without running anything that it contains.

    The file is mapped into memory and each storage of the state dict copied once, so the peak is the size of the
    tensors plus clean pages of the file, which the system may drop. A compressed file is first inflated in memory, so
    the peak is twice that of its tensors.

    Args:
        path: of the file. safetensors files and folders are read elsewhere.
        max_bytes: upper limit for the file, for what it inflates to, and for all tensors of the state dict together.

    Raises:
        PredictorNotFoundError: there is no such file.
        CheckpointError: damaged, truncated, or of an unknown layout.
        UnsafeFileError: it asks for something outside the whitelist, or exceeds the limits. Nothing of it was executed.
    """
    path = Path(path)
    if not path.exists():
        raise PredictorNotFoundError(
            f"there is no checkpoint file {path}; check the path, or name a predictor on the Hub"
        )
    try:
        if not path.is_file():
            raise CheckpointError("it is not a regular file")
        with path.open("rb") as file:
            return _read_open_file(file, max_bytes)
    except UnsafeFileError as error:
        raise UnsafeFileError(
            f"refused to read the checkpoint {path}: {error}. Nothing of it was executed. If you trust its source, "
            f"{_WAY_OUT}"
        ) from error
    except CheckpointError as error:
        raise CheckpointError(
            f"could not read the checkpoint {path}: {error}. Fetch it again if it may be damaged; otherwise {_WAY_OUT}"
        ) from error
    except OSError as error:
        raise CheckpointError(f"could not read the checkpoint {path}: {error.strerror or error}") from error


def _read_open_file(file: BufferedReader, max_bytes: int) -> ForeignCheckpoint:
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    num_bytes = file.tell()
    if num_bytes == 0:
        raise CheckpointError("it is empty")
    if num_bytes > max_bytes:
        raise UnsafeFileError(f"it has {num_bytes:,} bytes, more than the limit max_bytes={max_bytes:,}")
    container, content, value = _read_container(file, map_file(file), max_bytes)
    records, config, metadata = _sort_entries(value)
    return ForeignCheckpoint(
        state_dict=_load_tensors(records, content_bytes=len(content), max_bytes=max_bytes),
        config=config,
        metadata=metadata,
        container=container,
        sha256=sha256,
    )


def _read_container(file: BufferedReader, data: memoryview, max_bytes: int) -> tuple[str, memoryview, Any]:
    """Recognize the layout by its first bytes; return its name, its uncompressed bytes and the object inside."""
    budget = Budget(text_bytes=len(data))
    if data[:4] == b"PK\x03\x04":
        return "torch-zip", data, _read_torch_zip(read_zip(file, data), budget)
    if is_torch_legacy(data):
        return "torch-legacy", data, read_torch_legacy(data, budget)
    if data[:1] == b"\x80":
        return "joblib", data, read_joblib_pickle(data, budget)
    compression = detect_compression(data)
    if compression is None:
        raise CheckpointError(
            f"its first bytes ({bytes(data[:8]).hex(' ')}) are neither those of a torch archive, an old torch file "
            "nor a joblib file"
        )
    content = inflate(data, compression, max_bytes=max_bytes)
    return f"joblib-{compression}", content, read_joblib_pickle(content, Budget(text_bytes=len(content)))


def _read_torch_zip(entries: Mapping[str, ZipEntry], budget: Budget) -> Any:
    """Interpret `data.pkl` and tie each storage to its entry `data/<key>`."""
    if "data.pkl" not in entries:
        raise CheckpointError("the zip archive has no data.pkl, so torch.save did not write it")
    if "constants.pkl" in entries:
        raise CheckpointError("it is a TorchScript program, not a checkpoint")
    if "byteorder" in entries and entries["byteorder"].checked() != b"little":
        raise CheckpointError(
            "its byte order is not little-endian; load and save it on the kind of machine that wrote it"
        )
    table = StorageTable(id_length=5)
    value = read_torch_pickle(entries["data.pkl"].checked(), budget, table)
    for key, storage in table.storages.items():
        entry = entries.get(f"data/{key}")
        if entry is None:
            raise CheckpointError(f"the zip archive lacks the storage data/{key:.40}")
        storage.attach(entry.data, crc32=entry.crc32)
    return value


def _sort_entries(value: object) -> tuple[dict[str, TensorRecord], dict[str, Any] | None, dict[str, Any]]:
    """Split the object of a file into records of the state dict, config and metadata."""
    if not isinstance(value, dict):
        raise CheckpointError(f"it holds a {describe(value)}, expected a state dict or a dictionary with one")
    key = _state_dict_key(value)
    if key is None:
        return _check_state_dict(value), None, {}
    to_plain = _PlainConverter()
    config = to_plain(value.get("config"))
    if not isinstance(config, dict | None):
        raise CheckpointError(f"its config is a {describe(value['config'])}, expected a dictionary")
    metadata = to_plain({name: entry for name, entry in value.items() if name not in {*_NOT_METADATA, key}})
    return _check_state_dict(value[key]), config, metadata


def _state_dict_key(value: Mapping[Any, Any]) -> str | None:
    """The entry that holds the tensors; None when they stand beside each other in the file.

    The training scripts of DeiT and LeTs call it "model".
    """
    if "state_dict" in value:
        return "state_dict"
    model = value.get("model")
    holds_tensors = isinstance(model, dict) and any(isinstance(entry, TensorRecord) for entry in model.values())
    return "model" if holds_tensors else None


def _check_state_dict(value: object) -> dict[str, TensorRecord]:
    if not isinstance(value, dict) or not value:
        raise CheckpointError(f"its state dict is an empty or missing dictionary ({describe(value)})")
    for key, record in value.items():
        if not isinstance(key, str) or not isinstance(record, TensorRecord):
            raise CheckpointError(f"the entry {key!r:.80} of its state dict is a {describe(record)}, expected a tensor")
    return value


class _PlainConverter:
    """Turns interpreted values into fresh JSON values.

    Values may be shared in the file, so that a few bytes stand for a tree of any size, or contain themselves; both run
    into the limits, which hold for all calls of one converter together.
    """

    def __init__(self) -> None:
        self._values_left = MAX_PLAIN_VALUES

    def __call__(self, value: object) -> Any:
        plain = self._convert(value, MAX_PLAIN_DEPTH)
        return None if plain is _DROPPED else plain

    def _convert(self, value: object, depth: int) -> Any:
        self._values_left -= 1
        if self._values_left < 0:
            raise UnsafeFileError(f"its config and metadata expand to more than {MAX_PLAIN_VALUES:,} values")
        if depth == 0:
            raise UnsafeFileError(
                f"its config or metadata nest deeper than {MAX_PLAIN_DEPTH} levels, or contain themselves"
            )
        if isinstance(value, Attributes):
            value = value.values
        if isinstance(value, dict):
            items = ((str(key), self._convert(entry, depth - 1)) for key, entry in value.items())
            return {key: plain for key, plain in items if plain is not _DROPPED}
        if isinstance(value, list | tuple):
            plain = (self._convert(entry, depth - 1) for entry in value)
            return [None if entry is _DROPPED else entry for entry in plain]
        return value if value is None or isinstance(value, bool | int | float | str) else _DROPPED


def _load_tensors(records: Mapping[str, TensorRecord], *, content_bytes: int, max_bytes: int) -> dict[str, Tensor]:
    """Copy every storage once and make the tensors views of the copies.

    Args:
        records: name to tensor description.
        content_bytes: size of the uncompressed file, which bounds the copies.
        max_bytes: bounds the tensors as if none shared its storage.
    """
    storages = {id(record.storage): record.storage for record in records.values()}
    copied_bytes = sum(storage.num_bytes for storage in storages.values())
    if copied_bytes > content_bytes:
        raise UnsafeFileError(f"its tensors need {copied_bytes:,} bytes, but the data have only {content_bytes:,}")
    tensor_bytes = sum(record.numel * record.storage.dtype.itemsize for record in records.values())
    if tensor_bytes > max_bytes:
        raise UnsafeFileError(f"its tensors have {tensor_bytes:,} bytes, more than the limit max_bytes={max_bytes:,}")
    flat = {key: _copy_storage(storage) for key, storage in storages.items()}
    return {name: _view(record, flat[id(record.storage)]) for name, record in records.items()}


def _copy_storage(storage: Storage) -> Tensor:
    """Copy the bytes of a storage into a flat tensor, which also aligns them; the file does not."""
    if storage.data is None:
        raise CheckpointError("a storage without data")
    if storage.crc32 is not None:
        check_crc32(storage.data, storage.crc32)
    raw = torch.empty(storage.num_bytes, dtype=torch.uint8)
    raw.numpy().data[:] = storage.data
    # Bytes other than 0 and 1 are no valid bool.
    return raw != 0 if storage.dtype == torch.bool else raw.view(storage.dtype)


def _view(record: TensorRecord, flat: Tensor) -> Tensor:
    if record.numel == 0:
        return flat.new_empty(record.size)
    return flat.as_strided(record.size, record.stride, record.offset)

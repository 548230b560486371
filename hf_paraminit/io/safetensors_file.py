"""Reading and writing safetensors files, checked against the network they belong to."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_paraminit.errors import CheckpointError, PredictorNotFoundError
from hf_paraminit.io.atomic import atomic_write

# Names of element types in a safetensors header. Types that no predictor uses are left out: they cannot match.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
INDEX_FILE = "model.safetensors.index.json"  # which shard holds which tensor, for the libraries that ask
_MAX_NAMED = 10  # tensors of one kind that an error message names; a wrong architecture would fill the screen


def read_tensors(
    path: str | os.PathLike[str] | Sequence[Path], expected: Mapping[str, Tensor], *, allow_cast_16bit: bool = True
) -> dict[str, Tensor]:
    """Read the tensors of a network from a file, or its shards, that must hold exactly these.

    Names, shapes and dtypes are compared with the headers before anything is allocated.

    Args:
        path: safetensors file, or the files over which the tensors are spread.
        expected: state dict of the network, usually on the meta device; only shapes and dtypes are looked at.
        allow_cast_16bit: accept float16 and bfloat16 in the file where float32 is expected, and cast them up.

    Returns:
        Tensors on the CPU, with the shapes, dtypes and order of `expected`.

    Raises:
        PredictorNotFoundError: there is no such file.
        CheckpointError: the file is damaged, does not fit the network (all differences are listed), or holds NaN or
            infinite values.
    """
    paths = [Path(path)] if isinstance(path, str | os.PathLike) else list(path)
    headers = {path: _read_header(path) for path in paths}
    place = paths[0] if len(paths) == 1 else paths[0].parent
    _check_fit(place, headers, expected, allow_cast_16bit)
    stored: dict[str, Tensor] = {}
    for path, header in headers.items():
        stored |= _read_as(path, {name: expected[name].dtype for name in header})
    tensors = {name: stored[name] for name in expected}
    _check_finite(place, tensors)
    return tensors


def load_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read whatever tensors a file holds, for checks that come later.

    Args:
        path: safetensors file.

    Returns:
        Tensors on the CPU, as stored.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(_unreadable(Path(path), error)) from error


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a safetensors file that appears complete or not at all.

    Args:
        path: file to be created or replaced.
        tensors: any shapes, dtypes and devices; no two may share memory.
        metadata: text entries for the header; "format" is set to "pt", which Transformers looks for.

    Raises:
        OutputError: the file could not be written; a previous one is as before.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(stored, temporary, metadata={**(metadata or {}), "format": "pt"})


def write_shards(folder: Path, tensors: Mapping[str, Tensor], max_shard_size: int | str) -> list[str]:
    """Write `model.safetensors`, or `model-00001-of-00002.safetensors` and so on with an index.

    Args:
        folder: where to write; each file appears complete or not at all.
        tensors: as for `write_tensors`.
        max_shard_size: bytes, or text such as "5GB"; a larger tensor still gets a file of its own.

    Returns:
        Names of the files with tensors.

    Raises:
        OutputError: a file could not be written.
    """
    plan = split_torch_state_dict_into_shards(dict(tensors), max_shard_size=max_shard_size)
    for name, members in plan.filename_to_tensors.items():
        write_tensors(folder / name, {member: tensors[member] for member in members})
    if plan.is_sharded:
        with atomic_write(folder / INDEX_FILE) as path:
            index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
            path.write_text(json.dumps(index, indent=2) + "\n")
    return list(plan.filename_to_tensors)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content as 64 lower-case hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and stored type of every tensor, by name."""
    if not path.is_file():
        raise PredictorNotFoundError(
            f"There is no weights file {path}. Give the path of an existing .safetensors file."
        )
    try:
        # The torch framework reserves memory for the whole file while opening it, numpy does not.
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return {name: (tuple(item.get_shape()), item.get_dtype()) for name, item in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(_unreadable(path, error)) from error


def _read_as(path: Path, dtypes: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).to(dtype) for name, dtype in dtypes.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(_unreadable(path, error)) from error


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite, found without a temporary of the tensor's size."""
    return tensor.numel() == 0 or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def _unreadable(path: Path, error: Exception) -> str:
    return (
        f"{path} is not a readable safetensors file ({error}). It may be truncated or of another format: fetch or "
        "write it again, or turn a foreign checkpoint into this format with `paraminit convert`."
    )


def _check_fit(
    place: Path,
    headers: Mapping[Path, Mapping[str, tuple[tuple[int, ...], str]]],
    expected: Mapping[str, Tensor],
    allow_cast_16bit: bool,
) -> None:
    """Compare headers and skeleton; raise one error with every difference."""
    found = {name: entry for header in headers.values() for name, entry in header.items()}
    repeated = [name for name in found if sum(name in header for header in headers.values()) > 1]
    missing = [f"{name} {tuple(skeleton.shape)}" for name, skeleton in expected.items() if name not in found]
    unexpected = [f"{name} {shape}" for name, (shape, _) in found.items() if name not in expected]
    mismatched = [
        f"{name} {shape} {dtype} instead of {tuple(expected[name].shape)} {expected[name].dtype}"
        for name, (shape, dtype) in found.items()
        if name in expected
        and not (shape == expected[name].shape and _dtype_fits(dtype, expected[name].dtype, allow_cast_16bit))
    ]
    faults = [
        f"{len(names)} {kind}: {_listing(names)}"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape or dtype", mismatched),
            ("in more than one file", repeated),
        )
        if names
    ]
    if faults:
        raise CheckpointError(
            f"{place} does not fit the network it is loaded into ({len(expected)} tensors expected, {len(found)} "
            f"found). {'. '.join(faults)}. Check that the weights and config.json belong together."
        )


def _dtype_fits(stored: str, wanted: torch.dtype, allow_cast_16bit: bool) -> bool:
    if allow_cast_16bit and wanted == torch.float32 and stored in ("F16", "BF16"):
        return True
    return _DTYPES.get(stored) == wanted


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    spoiled = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if spoiled:
        raise CheckpointError(
            f"{path} holds NaN or infinite values in {len(spoiled)} of {len(tensors)} tensors: {_listing(spoiled)}. "
            "The file is damaged or its training diverged: fetch it again or use another checkpoint."
        )


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more

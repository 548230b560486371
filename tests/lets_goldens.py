"""Recorded outputs of the published LeTs code: how to read them, shared by several test files.

Small nets are stored. The full-size one is a closed formula of key and index, of which statistics are stored.
"""

import functools
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from hf_paraminit.lets.generator import LeTsGenerator

LETS = Path(__file__).parent / "golden" / "lets"
CASES = ("case_a", "case_c")
MODULUS, FACTOR = 104729, 7919
# Part of the key -> (scale, offset) of the formula; the first match wins.
FILLS = {
    "trans_depth_weight": (0.3, 0.5),
    "trans_width": (None, 0.0),
    "pos_embed": (0.3, 0.0),
    "norm": (0.2, 1.0),
    "bias": (0.1, 0.0),
    "patch_embed": (0.04, 0.0),
}


def meta(case: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((LETS / case / "meta.json").read_text())
    return record


def tensors(name: str) -> dict[str, Tensor]:
    return load_file(LETS / f"{name}.safetensors")


def generator(case: str) -> LeTsGenerator:
    """The recorded learngene, in double precision as it was computed."""
    heads = meta(case)["learngene"]["num_heads"]
    return LeTsGenerator.from_state_dict(tensors(f"{case}/learngene"), {"num_heads": heads}).double()


def assert_weights(found: Tensor, expected: Tensor, name: str) -> None:
    torch.testing.assert_close(found, expected.to(found), rtol=1e-5, atol=1e-6, msg=lambda text: f"{name}: {text}")


def filled(key: str, shape: tuple[int, ...], scale: float, offset: float) -> Tensor:
    """The formula: values that look random and can be made anywhere."""
    index = torch.arange(math.prod(shape), dtype=torch.int64)
    code = zlib.crc32(key.encode())
    uniform = ((index * index * FACTOR + index * (code % MODULUS) + code) % MODULUS).double() / MODULUS
    return (offset + scale * math.sqrt(12) * (uniform - 0.5)).float().view(shape)


def _fill(key: str, shape: tuple[int, ...]) -> Tensor:
    for part, (scale, offset) in FILLS.items():
        is_match = key.endswith(part) if part == "bias" else part in key
        if is_match and not (part == "norm" and not key.endswith("weight")):
            return filled(key, shape, shape[-1] ** -0.5 if scale is None else scale, offset)
    return filled(key, shape, 0.8 * shape[-1] ** -0.5, 0.0)


@functools.cache
def full_size() -> LeTsGenerator:
    """The published size, 384 x 8 to 768 x 16, filled by the formula; from the bare tensors, as a file has them."""
    shapes = json.loads((LETS / "full_size_keys.json").read_text())["state_dict_keys"]
    return LeTsGenerator.from_state_dict({key: _fill(key, tuple(shape)) for key, shape in shapes.items()})


def assert_statistics(found: Mapping[str, Tensor], expected: Mapping[str, Any], *, rtol: float, atol: float) -> None:
    """Compare mean, deviation, norms and eight values of each tensor."""
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        record, flat = expected[name], tensor.detach().double().flatten()
        assert list(tensor.shape) == record["shape"], name
        statistics = [flat.mean(), flat.std(correction=0), flat.norm(), flat.abs().sum()]
        recorded = [record[key] for key in ("mean", "std", "l2", "abssum")]
        found_values = torch.stack([*statistics, *flat[record["sample_index"]]])
        torch.testing.assert_close(
            found_values,
            torch.tensor([*recorded, *record["sample"]], dtype=torch.float64),
            rtol=rtol,
            atol=atol,
            msg=lambda text, name=name: f"{name}: {text}",
        )

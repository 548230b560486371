"""Recorded networks of the published As-ViT code, rebuilt from integer arithmetic (see golden/asvit/README.md)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

import hf_paraminit  # noqa: F401 (registers the models)
from hf_paraminit.asvit.model import AsViT, checkpoint_filter_fn

FOLDER = Path(__file__).parent / "golden" / "asvit"
CASES = tuple(sorted(path.stem for path in FOLDER.glob("a??.json")))
LOGIT_INPUT, NTK_INPUT, FIRST_AXIS, SECOND_AXIS = 1_000_000, 1_000_001, 2_000_000, 2_000_001


def read(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def tensors(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


def signed(index: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """r(index, shape) of the README, in [-1, 1)."""
    with np.errstate(over="ignore"):
        steps = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(0xBF58476D1CE4E5B9)
        z = np.uint64(index + 1) * np.uint64(0x9E3779B97F4A7C15) + steps
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (2 * ((z >> np.uint64(40)).astype(np.float64) / 2**24) - 1).reshape(shape)


def images(index: int, count: int, side: int) -> Tensor:
    return torch.from_numpy(signed(index, (count, 3, side, side))).float()


def circle_frame(side: int) -> Tensor:
    """(2, 3, side, side) float64 orthonormal images."""
    a, b = (signed(index, (3 * side * side,)) for index in (FIRST_AXIS, SECOND_AXIS))
    a /= np.linalg.norm(a)
    b -= a * (a @ b)
    b /= np.linalg.norm(b)
    return torch.from_numpy(np.stack([a, b])).reshape(2, 3, side, side)


def weights(keys: list[tuple[str, list[int]]]) -> dict[str, Tensor]:
    found = {}
    for index, (name, shape) in enumerate(keys):
        value = signed(index, tuple(shape))
        if len(shape) >= 2:
            value = value * np.sqrt(3 / (np.prod(shape) / shape[0]))
        elif name.endswith("weight"):
            value = 1 + 0.2 * value
        else:
            value = 0.1 * value
        found[name] = torch.from_numpy(value).float()
    return found


def network(record: dict[str, Any], state: dict[str, Tensor] | None = None) -> AsViT:
    """The recorded network in evaluation mode, its weights passed through the checkpoint filter."""
    kwargs = {"img_size": record["img_size"], "num_classes": record["num_classes"]}
    model = timm.create_model("asvit", arch=record["arch"], **kwargs)
    model.load_state_dict(checkpoint_filter_fn(weights(record["keys"]) if state is None else state, model))
    return model.eval()

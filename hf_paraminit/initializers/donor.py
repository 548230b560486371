"""A trained network whose weights another one inherits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_paraminit.errors import InitializerConfigError, PredictorNotFoundError
from hf_paraminit.io.hub import HubSource, download, parse_source
from hf_paraminit.io.safetensors_file import load_tensors

WEIGHTS = "model.safetensors"  # as timm and Transformers store a model


def load_donor(donor: Any) -> dict[str, Tensor]:
    """The parameters of a donor by name, float32 on the CPU.

    Args:
        donor: a module, a state dict, a safetensors file, a folder with `model.safetensors`, `"local-dir:PATH"`, or
            `"hf-hub:org/repo[@revision]"`.

    Raises:
        InitializerConfigError: something else.
        PredictorNotFoundError: no such file or repository.
        CheckpointError: a damaged file.
    """
    if isinstance(donor, nn.Module):
        donor = donor.state_dict()
    if isinstance(donor, Mapping):
        tensors = dict(donor)
    elif isinstance(donor, (str, Path)):
        tensors = load_tensors(_weights_file(str(donor)))
    else:
        raise InitializerConfigError(
            f"donor must be a model, a state dict, a path or hf-hub:org/repo, found a {type(donor).__name__}."
        )
    floating = {
        name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor) and tensor.is_floating_point()
    }
    if not floating:
        raise InitializerConfigError("The donor holds no floating-point tensors, so there is nothing to inherit.")
    return {name: tensor.detach().to("cpu", torch.float32) for name, tensor in floating.items()}


def check_donor(donor: Any) -> None:
    """Raise `ValueError` for a missing donor."""
    if donor is None:
        raise ValueError(
            "a donor is needed, as in init_kwargs={'donor': 'hf-hub:timm/vit_small_patch16_224.augreg_in21k'}"
        )


def _weights_file(location: str) -> Path:
    if location.startswith(("hf-hub:", "local-dir:")):
        source = parse_source(location)
        if isinstance(source, HubSource):
            return download(source.repo_id, WEIGHTS, revision=source.revision).path
        path = source.path
    else:
        path = Path(location).expanduser()
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise PredictorNotFoundError(
            f"There is no donor at {path}: expected a safetensors file, or a folder with {WEIGHTS}."
        )
    return path

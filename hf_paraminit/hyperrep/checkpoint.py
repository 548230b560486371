"""Auto-encoders of the published code, read from its checkpoints and configurations without running anything in them.

Key names are the published ones, so nothing is renamed but the prefixes that training wrappers leave behind. Such a
checkpoint holds the auto-encoder alone: for sampling, put it together with anchors by `HyperRepresentation.of_zoo`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from hf_paraminit.errors import CheckpointError
from hf_paraminit.hyperrep.autoencoder import SequenceAutoEncoder
from hf_paraminit.hyperrep.config import GlobalConfig, SequenceConfig
from hf_paraminit.hyperrep.global_autoencoder import GlobalAutoEncoder
from hf_paraminit.io.safe_load import read_checkpoint
from hf_paraminit.io.safetensors_file import load_tensors

M = TypeVar("M", bound=nn.Module)

# What data-parallel and compiled training, and the published trainer, put in front of names.
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.", "autoencoder.")
# Parts of the published losses that are stored with the global auto-encoder; not needed to encode or decode.
LOSS_PREFIXES = ("projection_head.layers.", "loss_contrast.", "loss_recon.")


def read_sequence_autoencoder(path: str | Path, config: Mapping[str, Any] | str | Path) -> SequenceAutoEncoder:
    """Read SANE's auto-encoder.

    Args:
        path: Checkpoint of the published code, in any container, or safetensors.
        config: The published configuration (`ae:i_dim` and so on) or our own; or a JSON file with it.

    Returns:
        In eval mode.

    Raises:
        CheckpointError: Damaged or unsafe files, or tensors that do not fit the configuration.
    """
    model = SequenceAutoEncoder(SequenceConfig.from_dict(_read_json(config)))
    return _loaded(model, _read_tensors(Path(path)), path)


def read_global_autoencoder(
    path: str | Path, config: Mapping[str, Any] | str | Path, index: Mapping[str, Sequence[Any]] | str | Path
) -> GlobalAutoEncoder:
    """Read the auto-encoder of whole networks.

    Args:
        path: Checkpoint of the published code, in any container, or safetensors.
        config: The published configuration (`model::latent_dim` and so on), or a JSON file with it.
        index: The published `index_dict` of the zoo, or a JSON file with it.

    Returns:
        In eval mode.

    Raises:
        CheckpointError: Damaged or unsafe files, or tensors that do not fit the configuration.
    """
    model = GlobalAutoEncoder(GlobalConfig.from_dict(_read_json(config), _read_json(index)))
    return _loaded(model, _read_tensors(Path(path)), path)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    return load_tensors(path) if path.suffix == ".safetensors" else read_checkpoint(path).state_dict


def _loaded(model: M, state_dict: Mapping[str, Tensor], path: str | Path) -> M:
    expected = set(model.state_dict())
    tensors = {_bare(name, expected): tensor for name, tensor in state_dict.items()}
    kept = {name: tensor for name, tensor in tensors.items() if name in expected or not name.startswith(LOSS_PREFIXES)}
    try:
        model.load_state_dict(kept)
    except RuntimeError as error:  # torch lists every missing, unexpected and mismatched name
        raise CheckpointError(f"{path} does not fit its configuration: {error}") from error
    return model.eval()


def _bare(name: str, expected: set[str]) -> str:
    """The name without what wrappers put in front of it."""
    while name not in expected:
        prefix = next((prefix for prefix in WRAPPER_PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            return name
        name = name.removeprefix(prefix)
    return name


def _read_json(source: Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        return source
    try:
        values = json.loads(Path(source).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source} cannot be read as JSON: {error}. Give the published configuration.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{source} holds no JSON object. Give the published configuration.")
    return values

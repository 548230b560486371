"""Predictors that are too large for one device, spread over several by Accelerate."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import torch
from torch import nn

from hf_paraminit.errors import InitializerConfigError

Network = TypeVar("Network", bound=nn.Module)
DeviceMap = Literal["auto"] | Mapping[str, int | str]


def spread(network: Network, device_map: DeviceMap, whole_modules: Sequence[type[nn.Module]]) -> Network:
    """Spread a network over the accelerators, the CPU and the disk.

    Our own reader has mapped the weights from the file by then and checked them (names, shapes, NaN, hashes), so that
    they take no memory of the process: `load_checkpoint_and_dispatch` would save none and check less.

    Args:
        network: The network on the CPU; changed in place.
        device_map: "auto" fills the accelerators first, then the CPU, then the disk; or a device (number, "cpu",
            "disk") per submodule.
        whole_modules: Classes of submodules that stay on one device, since they read weights of their own submodules.

    Raises:
        InitializerConfigError: A map that does not fit the network or this machine.
    """
    from accelerate import dispatch_model  # slow to import

    whole = [kind.__name__ for kind in whole_modules]
    offload = tempfile.TemporaryDirectory(prefix="hf_paraminit_")
    try:
        devices = _automatic_map(network, whole) if isinstance(device_map, str) else dict(device_map)
        if "" in devices:  # Accelerate finds nothing to put on the disk under the name of the whole
            devices = {name: devices[""] for name, _ in network.named_children()}
        dispatch_model(network, devices, offload_dir=offload.name, preload_module_classes=whole)
    except (ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise InitializerConfigError(
            f"{type(network).__name__} could not be spread over devices as {device_map}: {error}"
        ) from error
    network._offload_folder = offload  # type: ignore[assignment] # which is removed together with the network
    return network


def _automatic_map(network: nn.Module, whole: list[str]) -> dict[str, int | str]:
    """Device per submodule: what Accelerate's own `device_map="auto"` gives."""
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    memory = get_balanced_memory(network, no_split_module_classes=whole)
    return infer_auto_device_map(network, memory, no_split_module_classes=whole)


def is_spread(network: nn.Module) -> bool:
    """Whether Accelerate decides where the parts of the network are."""
    return hasattr(network, "hf_device_map")


def execution_device(module: nn.Module) -> torch.device:
    """Where a module computes: where its parameters are, unless they come from the CPU or the disk for each use."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return next(module.parameters()).device if device is None else torch.device(device)

"""Where a predictor runs."""

import sys

import torch


def prediction_device(requested: str | None, own: torch.device) -> torch.device:
    """Return the device to predict on.

    Args:
        requested: The setting `device`; None for where it runs best.
        own: Device of the model.

    Returns:
        What was requested; else the model's accelerator; for a model on the CPU (or on meta) the accelerator that
        Accelerate gave to this process, if any, and the CPU otherwise.
    """
    if requested is not None and torch.device(requested).type != "meta":  # moving there would lose the weights
        return _with_index(torch.device(requested))
    if own.type not in ("cpu", "meta"):
        return _with_index(own)
    return _with_index(_device_of_accelerate() or torch.device("cpu"))


def _device_of_accelerate() -> torch.device | None:
    """`PartialState().device` where such a state exists already.

    Asking for it would create it, and with it the process group, the device and the backend of the whole process, which
    are the user's to choose (and an accelerator that is in use forbids to fork). Who has none, has no package loaded
    either or has not called it yet.
    """
    module = sys.modules.get("accelerate.state")
    return module.PartialState._shared_state.get("device") if module is not None else None


def _with_index(device: torch.device) -> torch.device:
    """Spell the current accelerator out, since "cuda" and "cuda:0" are unequal to torch."""
    if device.type == "cpu":
        return torch.device("cpu")
    return device if device.index is not None else torch.device(device.type, torch.accelerator.current_device_index())

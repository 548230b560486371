"""The one door through which predicted values enter a model."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from hf_paraminit.initializers.registry import create
from hf_paraminit.initializers.report import InitReport


def initialize(
    model: nn.Module,
    init: Any,
    *,
    names: Iterable[str] | None = None,
    seed: int | None = None,
    device: str | torch.device | None = None,
    distributed: str = "auto",
    **init_kwargs: Any,
) -> InitReport:
    """Write predicted values into a model, in place, or raise and leave it exactly as it was.

    Everything is computed and checked before the first parameter is touched. Values are cast to each parameter's dtype
    and device on copy. Tied parameters stay tied; `Parameter` objects, `requires_grad`, buffers, batch-norm statistics
    and torch's random state do not change. The report is also kept as `model._hf_paraminit`.

    Args:
        model: any module with materialised parameters. On the meta device nothing is written and a warning says so.
        init: a registered name (`"ghn3"`, `"ghn3:tm8"`), a predictor (`"hf-hub:org/repo@revision"`,
            `"local-dir:PATH"`), an `Initializer`, or a function `f(model, names, **init_kwargs)` that returns a part of
            a state dict. None does nothing.
        names: fully qualified names of the parameters that may be written; None means all.
        seed: seed of the prediction, at least 0; the initializer's own default when None.
        device: where to compute the prediction; when None the model's own accelerator, else the device that Accelerate
            has given this process, else the CPU. "auto" spreads a predictor that is too large for one device.
        distributed: in a process group of several ranks, "auto" predicts on rank 0 and broadcasts (all ranks must make
            the call), "off" predicts on each rank.
        **init_kwargs: further settings of the initializer.

    Raises:
        UnknownInitializerError: no such initializer or variant.
        InitializerConfigError: settings it does not take.
        PredictionError: a model that cannot be written, or values that do not fit it; all faults in one message.
    """
    if init is None:
        return InitReport()
    if seed is not None:
        init_kwargs["seed"] = seed
    if device is not None:
        init_kwargs["device"] = device
    return create(init, **init_kwargs).apply(model, names, distributed=distributed)

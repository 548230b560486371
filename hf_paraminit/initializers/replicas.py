"""One prediction for all ranks of a distributed run: rank 0 computes, everybody gets the same values.

Without a process group of at least two ranks, every function here just does the work in this process.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from hf_paraminit.errors import InitializerConfigError, PredictionError
from hf_paraminit.initializers.parameters import Prediction, WritePlan

T = TypeVar("T")

MODES = ("auto", "off")


def check_mode(distributed: str) -> None:
    """Raise `InitializerConfigError` for anything but "auto" and "off"."""
    if distributed not in MODES:
        raise InitializerConfigError(f"distributed must be one of {', '.join(MODES)}; found {distributed!r}.")


def is_shared(distributed: str) -> bool:
    """Whether this call is one of several that must agree.

    Args:
        distributed: "auto" shares when a process group of more than one rank exists, "off" never does.
    """
    check_mode(distributed)
    return distributed == "auto" and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def together(step: Callable[[], T], shared: bool) -> T:
    """Do a step on this rank; when it fails on any rank, fail on all of them instead of leaving the others waiting."""
    if not shared:
        return step()
    error: Exception | None = None
    try:
        result = step()
    except Exception as fault:
        error = fault
    messages: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(messages, None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for rank, message in enumerate(messages):
        if message is not None:
            raise PredictionError(f"Initialization stopped because rank {rank} failed with {message}")
    return result


def require_equal_plans(plan: WritePlan, shared: bool) -> None:
    """Refuse to broadcast between models that differ.

    Raises:
        PredictionError: the offered names or shapes are not the same on all ranks.
    """
    if not shared:
        return
    layout = [(name, tuple(parameter.shape), parameter.is_meta) for name, parameter in plan.parameters.items()]
    digests = [""] * dist.get_world_size()
    dist.all_gather_object(digests, hashlib.sha256(repr(layout).encode()).hexdigest())
    others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise PredictionError(
            f"The parameters offered by rank 0 and by rank {', '.join(map(str, others))} differ in name, shape or "
            "device. Build the same model on all ranks, or pass distributed='off' to predict on each of them."
        )


def predict_once(predict: Callable[[], Prediction], shared: bool) -> Prediction:
    """The prediction of rank 0 on every rank."""
    if not shared:
        return predict()
    is_source = dist.get_rank() == 0
    prediction = together(predict if is_source else lambda: Prediction(values={}), shared)
    header: list = [None]
    if is_source:
        layout = {name: (value.shape, value.dtype) for name, value in prediction.values.items()}
        header = [(layout, replace(prediction, values={}))]
    dist.broadcast_object_list(header, src=0)
    layout, rest = header[0]
    values = {name: _broadcast(prediction.values.get(name), *form) for name, form in layout.items()}
    return replace(rest, values=values)


def _broadcast(value: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Send a value from rank 0, where it is given, to the others; one at a time, so that two copies of one exist."""
    buffer = torch.empty(shape, dtype=dtype, device=_communication_device())
    if value is not None:
        buffer.copy_(value)
    dist.broadcast(buffer.view(-1).view(torch.uint8), src=0)  # as bytes: no backend knows every dtype
    return buffer if value is None else value


def _communication_device() -> torch.device:
    """Where tensors must be to be broadcast: NCCL alone cannot see host memory."""
    if "cpu:" in dist.get_backend_config() or dist.get_backend() != "nccl":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())

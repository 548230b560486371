"""One forward pass of a copy of a model, for the sake of its autograd graph."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_paraminit.errors import TracingError
from hf_paraminit.graphs.meta_copy import copy_structure, empty_on_cpu, tensor_on_cpu, tensor_on_meta

BATCH_SIZE = 2  # batch norm in train mode needs more than one sample


def run_forward(model: nn.Module, input_size: tuple[int, int, int], *, explicit: bool) -> tuple[nn.Module, list[Any]]:
    """Run a copy of the model, on meta tensors where it allows that and on real CPU tensors otherwise.

    The model, its gradients, hooks and modes and the global random number generators stay as they are.

    Args:
        model: The model.
        input_size: (channels, height, width) of a sample.
        explicit: Write fused attention out as matmul, softmax, matmul; otherwise show the fused CPU kernel.

    Returns:
        The copy that was run, and the `grad_fn` of each of its outputs.

    Raises:
        TracingError: When the model has no parameters, its forward pass fails, or no output can be differentiated.
    """
    if next(model.parameters(), None) is None:
        raise TracingError(
            f"Cannot trace {type(model).__name__}: it has no parameters, so there is nothing to predict."
        )
    attempts = (_on_meta, _on_cpu) if explicit else (_on_fake_cpu, _on_cpu)
    failures = []
    with _tracing_environment(explicit):
        for attempt in attempts:
            try:
                replica, output = attempt(model, input_size)
            except TracingError:
                raise
            except Exception as error:
                failures.append(error)
                continue
            return replica, _roots(model, output)
    raise TracingError(
        f"Cannot trace {type(model).__name__}: its forward pass fails on an input of size {(BATCH_SIZE, *input_size)}, "
        f"on {'meta' if explicit else 'fake'} tensors ({_summary(failures[0])}) and on real ones "
        f"({_summary(failures[1])}). Pass input_size= if the model expects another size."
    ) from failures[1]


def _on_meta(model: nn.Module, input_size: tuple[int, int, int]) -> tuple[nn.Module, Any]:
    replica = copy_structure(model, tensor_on_meta)
    return replica, _call(replica, torch.empty(BATCH_SIZE, *input_size, device="meta"))


def _on_fake_cpu(model: nn.Module, input_size: tuple[int, int, int]) -> tuple[nn.Module, Any]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        replica = copy_structure(model, empty_on_cpu)
        return replica, _call(replica, torch.empty(BATCH_SIZE, *input_size, device="cpu"))


def _on_cpu(model: nn.Module, input_size: tuple[int, int, int]) -> tuple[nn.Module, Any]:
    replica = copy_structure(model, tensor_on_cpu)
    return replica, _call(replica, torch.randn(BATCH_SIZE, *input_size, device="cpu"))


def _call(replica: nn.Module, sample: Tensor) -> Any:
    # Models that do not read images bring their own input.
    bring_output: Callable[[], Any] | None = getattr(replica, "get_var", None)
    return replica(sample) if bring_output is None else bring_output()


@contextmanager
def _tracing_environment(explicit: bool) -> Iterator[None]:
    """Gradients on, autocast off, and random numbers that are the same every time and cost the caller none."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    contexts: list[AbstractContextManager[Any]] = [
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.random.fork_rng(devices=[]),
    ]
    if explicit:
        contexts.append(sdpa_kernel(SDPBackend.MATH))
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        # The model may choose its operations at random.
        torch.default_generator.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


def _roots(model: nn.Module, output: Any) -> list[Any]:
    tensors = list(_tensors(output))
    roots = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    if not roots:
        raise TracingError(
            f"Cannot trace {type(model).__name__}: none of its {len(tensors)} output tensors can be differentiated. "
            "The forward pass may detach its result, run under torch.no_grad(), or use no parameter."
        )
    return roots


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from _tensors(list(output.values()))
    elif isinstance(output, (tuple, list)):
        for item in output:
            yield from _tensors(item)


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"

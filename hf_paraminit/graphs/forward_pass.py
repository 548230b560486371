"""One forward pass of a copy of a model, for the sake of its autograd graph."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_paraminit.errors import TracingError
from hf_paraminit.graphs.meta_copy import copy_structure, empty_on_cpu, tensor_on_cpu, tensor_on_meta
from hf_paraminit.graphs.recurrent import show_as_one_operation

Outcome = tuple[nn.Module, Any, Tensor | None]  # the copy, its output, the sample

MAX_REAL_ELEMENTS = 2**30  # beyond 4 GiB of weights a copy that is not on meta may exhaust the memory
BATCH_SIZE = 2  # batch norm in train mode needs more than one sample


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """What a forward pass left behind.

    Attributes:
        replica: The copy that was run.
        roots: `grad_fn` of each of its outputs.
        sample: The input; one that requires gradients shows where data enters. None when the model brought its own.
    """

    replica: nn.Module
    roots: list[Any]
    sample: Tensor | None


def run_forward(
    model: nn.Module, input_size: tuple[int, int, int], *, explicit: bool, show_data: bool = False
) -> ForwardPass:
    """Run a copy of the model, on meta tensors where it allows that and on real CPU tensors otherwise.

    The model, its gradients, hooks and modes and the global random number generators stay as they are.

    Args:
        model: The model.
        input_size: (channels, height, width) of a sample.
        explicit: Write fused attention out as matmul, softmax, matmul; otherwise show the fused CPU kernel.
        show_data: Make the input differentiable, so that it has a place in the autograd graph, show recurrent layers
            as one operation each, and try harder: fake tensors, then a smaller image, before the real thing.

    Raises:
        TracingError: When the model has no parameters, its forward pass fails, or no output can be differentiated.
    """
    if next(model.parameters(), None) is None:
        raise TracingError(
            f"Cannot trace {type(model).__name__}: it has no parameters, so there is nothing to predict."
        )
    first = _on_meta if explicit else _on_fake_cpu
    attempts = (first, _on_fake_cpu, _on_small_cpu, _on_cpu) if show_data else (first, _on_cpu)
    failures = []
    with _tracing_environment(explicit):
        for attempt in attempts:
            try:
                replica, output, sample = attempt(model, input_size, show_data)
            except TracingError:
                raise
            except Exception as error:
                failures.append(error)
                continue
            return ForwardPass(replica, _roots(model, output), sample)
    raise TracingError(
        f"Cannot trace {type(model).__name__}: its forward pass fails on an input of size {(BATCH_SIZE, *input_size)}, "
        f"on {'meta' if explicit else 'fake'} tensors ({_summary(failures[0])}) and on real ones "
        f"({_summary(failures[-1])}). Pass input_size= if the model expects another size."
    ) from failures[-1]


def _on_meta(model: nn.Module, input_size: tuple[int, int, int], show_data: bool) -> Outcome:
    replica = copy_structure(model, tensor_on_meta)
    return _call(replica, torch.empty(BATCH_SIZE, *input_size, device="meta"), show_data)


def _on_fake_cpu(model: nn.Module, input_size: tuple[int, int, int], show_data: bool) -> Outcome:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        replica = copy_structure(model, empty_on_cpu)
        return _call(replica, torch.empty(BATCH_SIZE, *input_size, device="cpu"), show_data)


def _on_small_cpu(model: nn.Module, input_size: tuple[int, int, int], show_data: bool) -> Outcome:
    channels, height, width = input_size
    return _on_cpu(model, (channels, max(height // 2, 1), max(width // 2, 1)), show_data)


def _on_cpu(model: nn.Module, input_size: tuple[int, int, int], show_data: bool) -> Outcome:
    num_elements = sum(parameter.numel() for parameter in model.parameters())
    if num_elements > MAX_REAL_ELEMENTS:
        raise MemoryError(f"a copy of its {num_elements:,} parameters would take {4 * num_elements / 2**30:.0f} GiB")
    replica = copy_structure(model, tensor_on_cpu)
    return _call(replica, torch.randn(BATCH_SIZE, *input_size, device="cpu"), show_data)


def _call(replica: nn.Module, sample: Tensor, show_data: bool) -> Outcome:
    # Models that do not read images bring their own input.
    bring_output: Callable[[], Any] | None = getattr(replica, "get_var", None)
    if show_data:
        show_as_one_operation(replica)
        sample.requires_grad_()
    if bring_output is not None:
        return replica, bring_output(), None
    # A copy, since the model may write into its input.
    return replica, replica(sample.clone() if show_data else sample), sample


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

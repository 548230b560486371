"""One forward pass of a copy of a model, for the sake of its autograd graph."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from types import GeneratorType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_paraminit.errors import TracingError
from hf_paraminit.graphs.example_inputs import ExampleInputs
from hf_paraminit.graphs.meta_copy import copy_structure, empty_on_cpu, tensor_on_cpu, tensor_on_meta
from hf_paraminit.graphs.recurrent import show_as_one_operation

Outcome = tuple[nn.Module, Any, Tensor | None]  # the copy, its output, the sample
Inputs = tuple[int, int, int] | ExampleInputs  # (channels, height, width) of images, or arguments

MAX_REAL_ELEMENTS = 2**30  # beyond 4 GiB of weights a copy that is not on meta may exhaust the memory
MAX_OUTPUT_DEPTH = 8  # of containers and objects within each other; some refer back to themselves
BATCH_SIZE = 2  # batch norm in train mode needs more than one sample


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """What a forward pass left behind.

    Attributes:
        replica: The copy that was run.
        roots: `grad_fn` of each of its outputs.
        sample: A leaf that shows where data enters: the images, or what all example inputs are computed from. None when
            the model brought its own.
        used_values: Whether it computed with the values of the model's weights, for want of a way without.
    """

    replica: nn.Module
    roots: list[Any]
    sample: Tensor | None
    used_values: bool = False


def run_forward(model: nn.Module, inputs: Inputs, *, explicit: bool, show_data: bool = False) -> ForwardPass:
    """Run a copy of the model, on meta tensors where it allows that and on real CPU tensors otherwise.

    The model, its gradients, hooks and modes and the global random number generators stay as they are.

    Args:
        model: The model.
        inputs: (channels, height, width) of a sample image, or arguments to call the model with.
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
    with _tracing_environment(explicit), _buffers_put_back(model):
        for attempt in attempts:
            try:
                replica, output, sample = attempt(model, inputs, show_data)
            except TracingError:
                raise
            except Exception as error:
                failures.append(error)
                continue
            used_values = attempt in (_on_small_cpu, _on_cpu)
            return ForwardPass(replica, _roots(model, output), sample, used_values)
    raise TracingError(
        f"Cannot trace {type(model).__name__}: its forward pass fails on {_described(inputs)}, "
        f"on {'meta' if explicit else 'fake'} tensors ({_summary(failures[0])}) and on real ones "
        f"({_summary(failures[-1])}). Pass input_size= if the model expects another size, or "
        "example_inputs= (a tensor, a tuple of arguments, or a dict of keyword arguments) if it takes anything but one "
        "batch of images."
    ) from failures[-1]


def _described(inputs: Inputs) -> str:
    return str(inputs) if isinstance(inputs, ExampleInputs) else f"an input of size {(BATCH_SIZE, *inputs)}"


def _on_meta(model: nn.Module, inputs: Inputs, show_data: bool) -> Outcome:
    return _run(copy_structure(model, tensor_on_meta), inputs, tensor_on_meta, show_data)


def _on_fake_cpu(model: nn.Module, inputs: Inputs, show_data: bool) -> Outcome:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with _silenced("torch._subclasses.fake_tensor"), FakeTensorMode():
        return _run(copy_structure(model, empty_on_cpu), inputs, empty_on_cpu, show_data)


def _on_small_cpu(model: nn.Module, inputs: Inputs, show_data: bool) -> Outcome:
    if not isinstance(inputs, ExampleInputs):
        channels, height, width = inputs
        inputs = (channels, max(height // 2, 1), max(width // 2, 1))
    return _on_cpu(model, inputs, show_data)


def _on_cpu(model: nn.Module, inputs: Inputs, show_data: bool) -> Outcome:
    num_elements = sum(parameter.numel() for parameter in model.parameters())
    if num_elements > MAX_REAL_ELEMENTS:
        raise MemoryError(f"a copy of its {num_elements:,} parameters would take {4 * num_elements / 2**30:.0f} GiB")
    return _run(copy_structure(model, tensor_on_cpu), inputs, tensor_on_cpu, show_data)


def _run(replica: nn.Module, inputs: Inputs, copy_tensor: Callable[[Tensor], Tensor], show_data: bool) -> Outcome:
    if show_data:
        show_as_one_operation(replica)
    # Models that do not read images bring their own input.
    bring_output: Callable[[], Any] | None = getattr(replica, "get_var", None)
    if isinstance(inputs, ExampleInputs):
        anchor = copy_tensor(torch.zeros(())).requires_grad_(show_data)
        copied = inputs.map(copy_tensor)
        arguments = copied.connected(anchor) if show_data else copied
        return replica, replica(*arguments.positional, **(arguments.named or {})), anchor
    if bring_output is not None:
        return replica, bring_output(), None
    has_values = copy_tensor is tensor_on_cpu
    shape = (BATCH_SIZE, *inputs)
    sample = torch.randn(shape, device="cpu") if has_values else copy_tensor(torch.empty(shape, device="meta"))
    sample.requires_grad_(show_data)
    # A copy, since the model may write into its input.
    return replica, replica(sample.clone() if show_data else sample), sample


@contextmanager
def _silenced(logger_name: str) -> Iterator[None]:
    """Keep errors that the next attempt may make good out of the caller's log."""

    def drop(record: logging.LogRecord) -> bool:
        return False

    logger = logging.getLogger(logger_name)
    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)


@contextmanager
def _buffers_put_back(model: nn.Module) -> Iterator[None]:
    """Undo what a forward pass writes into the model itself when it gets there past the copy, as by a global name."""
    before = [
        (buffer, buffer.detach().clone())
        for buffer in model.buffers()
        if not (nn.parameter.is_lazy(buffer) or buffer.is_meta or buffer.is_inference())
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                if not torch.equal(buffer, value):  # batch norm does not count its writes in `_version`
                    buffer.copy_(value)


@contextmanager
def _tracing_environment(explicit: bool) -> Iterator[None]:
    """Gradients on, autocast off, and random numbers that are the same every time and cost the caller none."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    default_dtype = torch.get_default_dtype()
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
        torch.set_default_dtype(torch.float32)
        # The model may choose its operations at random.
        torch.default_generator.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        try:
            yield
        finally:
            torch.set_default_dtype(default_dtype)
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


def _tensors(output: Any, depth: int = 0) -> Iterator[Tensor]:
    """Yield the tensors of a result: also those in containers, dataclasses and plain objects, in order."""
    if isinstance(output, Tensor):
        yield output
    if isinstance(output, Tensor) or depth > MAX_OUTPUT_DEPTH:
        return
    if isinstance(output, Mapping):
        parts = list(output.values())
    elif isinstance(output, (tuple, list, set, frozenset, GeneratorType)):
        parts = list(output)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        parts = [getattr(output, field.name) for field in dataclasses.fields(output)]
    else:
        parts = list(vars(output).values()) if hasattr(output, "__dict__") and not callable(output) else []
    for part in parts:
        yield from _tensors(part, depth + 1)


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"

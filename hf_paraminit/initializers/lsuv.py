"""Layer-sequential unit variance: orthogonal weights, rescaled with data layer by layer (arXiv 1511.06422)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hf_paraminit.errors import InitializerConfigError
from hf_paraminit.graphs.example_inputs import ExampleInputs
from hf_paraminit.graphs.meta_copy import copy_structure, tensor_on_cpu
from hf_paraminit.initializers.formula import Drawn, FormulaConfig, FormulaInitializer
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.structure.model import ModelStructure

TOLERANCE, MAX_TRIES = 0.1, 10  # Tol_var and T_max of the paper
SMALLEST_VARIANCE = 1e-8  # below, no signal arrives: a branch behind a zero scale


@register_initializer("lsuv", summary="orthogonal weights, rescaled to unit variance on one batch", paper="1511.06422")
class LSUV(FormulaInitializer):
    """Algorithm 1 of the paper: W = orthogonal, bias 0; then, in order of execution, W /= sqrt(var(output)) until the
    variance of the layer's output is within 0.1 of 1, at most 10 times.

    Layers that no signal reaches, and layers whose output does not follow their scale, stay orthogonal. Norms use the
    batch's statistics; the model's running statistics do not change.
    """

    reads_values = True  # of norms, scales and tables on the way

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(FormulaConfig):
        """Settings.

        Attributes:
            data: batch for the forward pass (a tensor, or a tuple or dict of arguments); normal noise of the model's
                input size when None.
            batch_size: of the noise.
            mode: "fast" rescales every layer within one forward pass, "passes" runs the model anew for every
                measurement, as in the paper.
        """

        data: Any = None
        batch_size: int = 64
        mode: Literal["fast", "passes"] = "fast"

        def validate(self) -> None:
            if self.batch_size < 2:
                raise ValueError(f"batch_size must be at least 2, found {self.batch_size}")

    config: Config

    def draw(self, model: ModelStructure, names: Sequence[str]) -> Iterator[Drawn]:
        replica = copy_structure(model.module, tensor_on_cpu).requires_grad_(False)
        _use_batch_statistics(replica)
        layers = {name: layer for name, layer in model.layers.items() if name in set(names)}
        for name, layer in layers.items():
            weight = nn.init.orthogonal_(torch.empty(layer.shape), generator=self.generator(name))
            replica.get_parameter(name).copy_(layer.stored(weight))
            if layer.bias is not None and layer.bias in names:
                replica.get_parameter(layer.bias).zero_()
        rescaled = self._rescale(replica, list(layers), self._batch(model))
        for name, layer in layers.items():
            reached = rescaled.get(name)
            rule = "orthogonal, not rescaled" if reached is None else f"orthogonal, output variance {reached:.3g}"
            yield Drawn(name, rule, replica.get_parameter(name).detach())
            if layer.bias is not None:
                yield Drawn(layer.bias, "zero", torch.zeros(layer.shape[0]))

    def _batch(self, model: ModelStructure) -> Any:
        if self.config.data is not None:
            return self.config.data
        if isinstance(model.inputs, ExampleInputs):
            raise InitializerConfigError("lsuv needs data= for a model that does not take images.")
        shape = (self.config.batch_size, *model.inputs)
        self.note(f"variances were measured on normal noise of shape {shape}; pass data= for a batch of yours")
        return self.normal(shape, "batch")

    def _rescale(self, replica: nn.Module, names: Sequence[str], batch: Any) -> dict[str, float]:
        """Rescale weights in place; return the output variances that were reached, in order of execution."""
        run = functools.partial(_run, replica, ExampleInputs.of(batch))
        owners = {name: replica.get_submodule(name.rpartition(".")[0]) for name in names if name.endswith(".weight")}
        if self.config.mode == "fast":
            return run(owners, unit_variance)
        reached = run(owners, lambda module, again, output: (output, variance(output)))
        for name in reached:
            for _ in range(MAX_TRIES):
                found = run({name: owners[name]}, lambda module, again, output: (output, variance(output)))[name]
                reached[name] = found
                if found < SMALLEST_VARIANCE or abs(found - 1) < TOLERANCE:
                    break
                owners[name].weight /= found**0.5
        return reached


def variance(output: Tensor) -> float:
    """Over all elements."""
    return output.float().var(correction=0).item()


def unit_variance(module: nn.Module, again: Callable[[], Tensor], output: Tensor) -> tuple[Tensor, float]:
    """Divide a layer's weight until its output has unit variance.

    Args:
        module: the layer.
        again: computes its output anew.
        output: what it just computed.

    Returns:
        The output, and its variance.
    """
    weight: Any = module.weight
    start, first = weight.clone(), variance(output)
    found = first
    for _ in range(MAX_TRIES):
        if found < SMALLEST_VARIANCE or abs(found - 1) < TOLERANCE:
            return output, found
        weight /= found**0.5
        output = again()
        before, found = found, variance(output)
        if abs(found - before) < 1e-3 * before:  # the layer standardizes its weight, so scale has no effect
            weight.copy_(start)
            return again(), first
    return output, found


Measure = Callable[[nn.Module, Callable[[], Tensor], Tensor], tuple[Tensor, float]]


def _run(model: nn.Module, inputs: ExampleInputs, owners: dict[str, nn.Module], measure: Measure) -> dict[str, float]:
    """One forward pass that lets `measure` act on each layer when it runs first; its results by name, in that order."""
    found: dict[str, float] = {}

    def hook(name: str, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        if name not in found:
            output, found[name] = measure(module, lambda: module.forward(*args, **kwargs), output)
        return output

    with ExitStack() as stack:
        for name, owner in owners.items():
            handle = owner.register_forward_hook(functools.partial(hook, name), with_kwargs=True)
            stack.callback(handle.remove)
        model(*inputs.positional, **(inputs.named or {}))
    return found


def _use_batch_statistics(model: nn.Module) -> None:
    """Evaluation mode, so that drop-out is off, but norms with the statistics of the batch."""
    model.eval()
    for module in model.modules():
        if isinstance(module, _NormBase):
            module.train()

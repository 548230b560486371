"""Permutations of hidden units: which there are, applying them, and aligning a network to a reference ("re-basin").

A network computes the same function when the units of a hidden layer are listed in another order, with the inputs of
the next layers reordered alike. Weight matching (Git Re-Basin, ICLR 2023, section 3.2) finds the order in which a
network resembles a reference most.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from hf_paraminit.errors import CheckpointError
from hf_paraminit.hyperrep.tokens import TokenLayout

Permutations = dict[str, Tensor]  # group -> (units,) int64

MAX_SWEEPS = 100  # over all groups; a few suffice in practice
MIN_GAIN = 1e-12  # of the matching's objective, as published
_TOLERANCE = 1e-3  # relative, of the check that a permuted network computes the same

logger = logging.getLogger("hf_paraminit")


@dataclass(frozen=True, kw_only=True)
class PermutationSpec:
    """Which axes of which tensors list the units of which group.

    Attributes:
        axes: Key -> group of each axis, None for an axis that stays. An axis may be a multiple of its group's size (a
            linear layer after a flatten, or the channels of attention heads): it is then permuted in blocks.
        sizes: Group -> number of its units.
        repeats: Key -> how often its first axis lists all units, 3 for queries, keys and values in one tensor; once
            for keys that are left out.
    """

    axes: Mapping[str, tuple[str | None, ...]]
    sizes: Mapping[str, int]
    repeats: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        axes: Mapping[str, Sequence[str | None]],
        shapes: Mapping[str, Sequence[int]],
        *,
        sizes: Mapping[str, int] | None = None,
        repeats: Mapping[str, int] | None = None,
    ) -> Self:
        """Check axes against shapes.

        Args:
            axes: Key -> group of each axis; trailing axes that stay may be left out.
            shapes: Key -> shape.
            sizes: Units of groups all of whose axes are multiples; others have as many as their shortest axis.
            repeats: As the attribute.

        Raises:
            CheckpointError: Keys without a tensor, too many axes, or lengths that no group size divides.
        """
        given, repeats = sizes or {}, repeats or {}
        faults = [f"{key} is no tensor" for key in axes if key not in shapes]
        known = {
            key: (*groups, *[None] * (len(shapes[key]) - len(groups))) for key, groups in axes.items() if key in shapes
        }
        lengths: dict[str, list[tuple[int, int, str]]] = {}
        for key, groups in known.items():
            if len(groups) != len(shapes[key]):
                faults.append(f"{key} has shape {tuple(shapes[key])}, the axes are {groups}")
                continue
            for axis, (length, group) in enumerate(zip(shapes[key], groups, strict=True)):
                if group is not None:
                    lengths.setdefault(group, []).append((length, repeats.get(key, 1) if axis == 0 else 1, key))
        units = {
            group: given.get(group, min(length // times for length, times, _ in found))
            for group, found in lengths.items()
        }
        faults += [
            f"{key} has an axis of {length}, no multiple of {times * units[group]} for the {units[group]} units of "
            f"{group}"
            for group, found in lengths.items()
            for length, times, key in found
            if length % (times * units[group])
        ]
        if faults:
            raise CheckpointError(f"Permutations do not fit the tensors: {'; '.join(faults)}.")
        return cls(axes=known, sizes=units, repeats=dict(repeats))

    @cached_property
    def places(self) -> dict[str, list[tuple[str, int]]]:
        """Group -> its (key, axis)."""
        found: dict[str, list[tuple[str, int]]] = {group: [] for group in self.sizes}
        for key, groups in self.axes.items():
            for axis, group in enumerate(groups):
                if group is not None:
                    found[group].append((key, axis))
        return found

    def reorder(self, key: str, tensor: Tensor, axis: int, order: Tensor) -> Tensor:
        """Reorder the units along one axis of a tensor (B, *shape), with any leading axes.

        Args:
            key: Of the tensor.
            tensor: Its values.
            axis: Counted without the leading axes.
            order: (units,) of the axis's group.
        """
        place = axis - len(self.axes[key])
        times, units = self._times(key, axis), len(order)
        block = tensor.shape[place] // (times * units)
        index = order if block == 1 else (order[:, None] * block + torch.arange(block)).flatten()
        if times > 1:
            index = (torch.arange(times)[:, None] * units * block + index).flatten()
        return tensor.index_select(place, index.to(tensor.device))

    def by_unit(self, key: str, tensor: Tensor, axis: int) -> Tensor:
        """(units, values) of a tensor: what belongs to each unit along an axis."""
        group = self.axes[key][axis]
        assert group is not None
        times, units = self._times(key, axis), self.sizes[group]
        return tensor.movedim(axis, 0).reshape(times, units, -1).movedim(1, 0).flatten(1)

    def _times(self, key: str, axis: int) -> int:
        return self.repeats.get(key, 1) if axis == 0 else 1

    def identity(self) -> Permutations:
        """The permutation of each group that changes nothing."""
        return {group: torch.arange(size) for group, size in self.sizes.items()}

    def draw(self, generator: torch.Generator) -> Permutations:
        """A uniformly random permutation of each group."""
        return {group: torch.randperm(size, generator=generator) for group, size in self.sizes.items()}

    def inverse(self, permutations: Permutations) -> Permutations:
        """The permutations that undo these."""
        return {group: torch.argsort(order) for group, order in permutations.items()}

    def apply(self, state_dict: Mapping[str, Tensor], permutations: Permutations) -> dict[str, Tensor]:
        """Reorder units: unit i of the result is unit `permutations[group][i]` of the input.

        Args:
            state_dict: Tensors (B, *shape) by key, with any leading axes; keys without axes are passed on.
            permutations: Group -> order; groups that are left out stay.
        """
        permuted = dict(state_dict)
        for key, groups in self.axes.items():
            if key in permuted:
                for axis, group in enumerate(groups):
                    if group in permutations:
                        permuted[key] = self.reorder(key, permuted[key], axis, permutations[group])
        return permuted

    def token_index(self, layout: TokenLayout, permutations: Permutations) -> Tensor:
        """(N * T,) int64 gather index: flattened tokens of the permuted network are those of the network at it."""
        size = layout.num_tokens * layout.token_dim
        numbers = torch.arange(size).reshape(layout.num_tokens, layout.token_dim)
        parts: dict[str, Tensor] = {}
        for layer in layout.layers:
            rows = numbers[layer.tokens].reshape(layer.num_rows, -1)[:, : layer.num_columns]
            parts |= dict(zip(layer.names, layer.split(rows), strict=True))
        index = layout.tokenize(self.apply(parts, permutations))
        return torch.where(layout.mask, index, numbers).flatten()

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        axes = {key: list(groups) for key, groups in self.axes.items()}
        return {"axes": axes, "sizes": dict(self.sizes), "repeats": dict(self.repeats)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        try:
            axes = {str(key): tuple(groups) for key, groups in values["axes"].items()}
            sizes, repeats = (
                {str(name): int(number) for name, number in numbers.items()}
                for numbers in (values["sizes"], values.get("repeats", {}))
            )
            return cls(axes=axes, sizes=sizes, repeats=repeats)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"Cannot read the permutations of a zoo: {error!r:.200}. Write it again.") from error


def weight_matching(
    reference: Mapping[str, Tensor],
    state_dict: Mapping[str, Tensor],
    spec: PermutationSpec,
    *,
    seed: int = 0,
    max_sweeps: int = MAX_SWEEPS,
) -> Permutations:
    """Find the order of units in which a network resembles the reference most.

    Groups are visited in random order; each is solved exactly (linear assignment) with the others held, until a sweep
    over all improves nothing.

    Args:
        reference: Weights to resemble.
        state_dict: Weights to be reordered.
        spec: Groups of units.
        seed: Of the order of the groups.
        max_sweeps: Most sweeps.

    Returns:
        Permutations p for which `spec.apply(state_dict, p)` is close to the reference.
    """
    generator = torch.Generator().manual_seed(seed)
    groups = list(spec.sizes)
    found = spec.identity()
    for _ in range(max_sweeps):
        has_improved = False
        for index in torch.randperm(len(groups), generator=generator).tolist():
            group = groups[index]
            similarity = _similarity(reference, state_dict, spec, found, group)
            _, columns = linear_sum_assignment(similarity.numpy(), maximize=True)
            order = torch.from_numpy(columns)
            units = torch.arange(len(order))
            gain = similarity[units, order].sum() - similarity[units, found[group]].sum()
            has_improved |= bool(gain > MIN_GAIN)
            found[group] = order
        if not has_improved:
            break
    return found


def _similarity(
    reference: Mapping[str, Tensor],
    state_dict: Mapping[str, Tensor],
    spec: PermutationSpec,
    permutations: Permutations,
    group: str,
) -> Tensor:
    """(units of the reference, units of the network) float64 inner products over all tensors of a group."""
    size = spec.sizes[group]
    total = torch.zeros(size, size, dtype=torch.float64)
    for key, axis in spec.places[group]:
        ours = state_dict[key].double()
        for other, name in enumerate(spec.axes[key]):
            if other != axis and name is not None:
                ours = spec.reorder(key, ours, other, permutations[name])
        total += spec.by_unit(key, reference[key].double(), axis) @ spec.by_unit(key, ours, axis).T
    return total


# ---------------------------------------------------------------------- which permutations a network has


def permutation_spec(model: nn.Module, images: Tensor) -> PermutationSpec | None:
    """Find groups of units that may be permuted, and check on a forward pass that they may.

    Known are plain stacks of convolutions and linear layers, residual networks with the names of torchvision and timm,
    timm's vision transformers (residual stream, attention heads, hidden layers), and the hidden layers of two-layer
    perceptrons (`fc1`, `fc2`) in anything else.

    Args:
        model: Network; not changed.
        images: (B, C, H, W) input for the check, of any content.

    Returns:
        The groups; None, with a warning, if none were found.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    for propose in (_stack_axes, _resnet_axes, _vit_axes, _mlp_axes):
        axes = propose(model)
        if not axes:
            continue
        try:
            spec = PermutationSpec.of(axes, shapes, **_heads(model, axes))
        except CheckpointError:
            continue
        if keeps_function(model, spec, images):
            return spec
    logger.warning(
        "No permutations of hidden units are known for %s: its zoo is neither aligned nor augmented by them.",
        type(model).__name__,
    )
    return None


@torch.no_grad()
def keeps_function(model: nn.Module, spec: PermutationSpec, images: Tensor, *, seed: int = 0) -> bool:
    """Whether a copy of the network, with random weights, computes the same after a random permutation.

    Weights are random because a layer that starts at zero would hide a mistake.
    """
    generator = torch.Generator().manual_seed(seed)
    replica = copy.deepcopy(model).cpu().float().eval()
    for tensor in replica.state_dict().values():
        if tensor.is_floating_point():
            low = 0.5 if tensor.ndim <= 1 else -1.0
            tensor.uniform_(low, 1.0, generator=generator)
            tensor.mul_(1.0 if tensor.ndim <= 1 else (3 / max(1, tensor[0].numel())) ** 0.5)
    expected = replica(images.cpu().float())
    replica.load_state_dict(spec.apply(replica.state_dict(), spec.draw(generator)))
    found = replica(images.cpu().float())
    scale = float((expected - expected.mean(0)).abs().max()) or 1.0
    return bool(expected.isfinite().all()) and float((found - expected).abs().max()) <= _TOLERANCE * scale


def _stack_axes(model: nn.Module) -> dict[str, tuple[str | None, ...]]:
    """Every layer feeds the next one; a batch norm belongs to the layer before it."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, _ConvNd | nn.Linear)]
    if len(layers) < 2 or any(getattr(module, "groups", 1) != 1 for _, module in layers):
        return {}
    last = layers[-1][0]
    axes: dict[str, tuple[str | None, ...]] = {}
    inputs: str | None = None
    outputs: str | None = None
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd | nn.Linear):
            inputs, outputs = outputs, None if name == last else f"P{len(axes)}"
            axes |= _layer_axes(name, module, inputs, outputs)
        elif isinstance(module, _BatchNorm):
            axes |= _vector_axes(name, module, outputs)
    return axes


def _resnet_axes(model: nn.Module) -> dict[str, tuple[str | None, ...]]:
    """One group for each residual stream, begun by the stem and by each block with a projection; more inside blocks."""
    stages = [f"layer{number}" for number in range(1, 9) if hasattr(model, f"layer{number}")]
    modules = dict(model.named_modules())
    if not stages or "conv1" not in modules or "fc" not in modules:
        return {}
    stem = [name for name in modules if name.startswith(("conv1", "bn1"))]
    stream = "P_bg0"
    axes = _chain_axes(stem, modules, None, stream)
    num_streams = 1
    for block in (f"{stage}.{name}" for stage in stages for name, _ in modules[stage].named_children()):
        inside = [name for name in modules if name.startswith(f"{block}.") and ".downsample" not in name]
        projection = [name for name in modules if name.startswith(f"{block}.downsample.")]
        entering = stream
        if projection:
            stream, num_streams = f"P_bg{num_streams}", num_streams + 1
            axes |= _chain_axes(projection, modules, entering, stream)
        axes |= _chain_axes(inside, modules, entering, stream)
    return axes | _layer_axes("fc", modules["fc"], stream, None)


def _chain_axes(
    names: Sequence[str], modules: Mapping[str, nn.Module], inputs: str | None, outputs: str | None
) -> dict[str, tuple[str | None, ...]]:
    """Convolutions one after another with their norms; groups between them are named after the convolution."""
    convolutions = [name for name in names if isinstance(modules[name], _ConvNd)]
    axes: dict[str, tuple[str | None, ...]] = {}
    group = inputs
    for name in names:
        module = modules[name]
        if isinstance(module, _ConvNd):
            entering, group = group, outputs if name == convolutions[-1] else f"P_{name}"
            axes |= _layer_axes(name, module, entering, group)
        elif isinstance(module, _BatchNorm):
            axes |= _vector_axes(name, module, group)
    return axes


def _vit_axes(model: nn.Module) -> dict[str, tuple[str | None, ...]]:
    """One group for the residual stream of a vision transformer; in each block one of heads and one of hidden units."""
    blocks, patches = getattr(model, "blocks", None), getattr(getattr(model, "patch_embed", None), "proj", None)
    if not isinstance(blocks, nn.Module) or not isinstance(patches, nn.Conv2d):
        return {}
    stream, width = "P_stream", patches.out_channels
    axes = _layer_axes("patch_embed.proj", patches, None, stream)
    for name, parameter in model.named_parameters(recurse=False):  # class token, position table
        if parameter.shape[-1:] == (width,):
            axes[name] = (*[None] * (parameter.ndim - 1), stream)
    modules = dict(model.named_modules())
    for name, module in modules.items():  # norms and LayerScale
        vectors = list(module.parameters(recurse=False))
        is_inside = ".attn." in name or ".mlp." in name
        if vectors and not is_inside and all(vector.shape == (width,) for vector in vectors):
            axes |= _vector_axes(name, module, stream)
    for name, _ in blocks.named_children():
        axes |= _block_axes(f"blocks.{name}", modules, stream)
    for name, module in model.named_children():  # classifiers
        if isinstance(module, nn.Linear):
            axes |= _layer_axes(name, module, stream, None)
    return axes


def _block_axes(block: str, modules: Mapping[str, nn.Module], stream: str) -> dict[str, tuple[str | None, ...]]:
    """Attention and perceptron of a block."""
    places = {
        "attn.qkv": (stream, f"P_{block}.attn"),
        "attn.proj": (f"P_{block}.attn", stream),
        "mlp.fc1": (stream, f"P_{block}.mlp"),
        "mlp.fc2": (f"P_{block}.mlp", stream),
    }
    axes: dict[str, tuple[str | None, ...]] = {}
    for part, (inputs, outputs) in places.items():
        if isinstance(layer := modules.get(f"{block}.{part}"), nn.Linear):
            axes |= _layer_axes(f"{block}.{part}", layer, inputs, outputs)
    return axes


def _heads(model: nn.Module, axes: Mapping[str, Sequence[str | None]]) -> dict[str, dict[str, int]]:
    """Arguments of `PermutationSpec.of` for fused attention: its heads, listed for queries, for keys and for values."""
    sizes: dict[str, int] = {}
    repeats: dict[str, int] = {}
    for name, module in model.named_modules():
        group, heads = f"P_{name}", getattr(module, "num_heads", None)
        listing = [key for key in (f"{name}.qkv.weight", f"{name}.qkv.bias") if axes.get(key, [None])[0] == group]
        if listing and isinstance(heads, int):
            sizes[group] = heads
            repeats |= dict.fromkeys(listing, 3)
    return {"sizes": sizes, "repeats": repeats}


def _mlp_axes(model: nn.Module) -> dict[str, tuple[str | None, ...]]:
    """Hidden units of every `fc1`, activation, `fc2`."""
    axes: dict[str, tuple[str | None, ...]] = {}
    for name, module in model.named_modules():
        first, second = getattr(module, "fc1", None), getattr(module, "fc2", None)
        if isinstance(first, nn.Linear | nn.Conv2d) and isinstance(second, nn.Linear | nn.Conv2d):
            dot = f"{name}." if name else ""
            axes |= _layer_axes(f"{dot}fc1", first, None, f"P_{name}")
            axes |= _layer_axes(f"{dot}fc2", second, f"P_{name}", None)
    return axes


def _layer_axes(
    name: str, module: nn.Module, inputs: str | None, outputs: str | None
) -> dict[str, tuple[str | None, ...]]:
    weight = module.weight
    assert isinstance(weight, Tensor)
    axes: dict[str, tuple[str | None, ...]] = {f"{name}.weight": (outputs, inputs, *[None] * (weight.ndim - 2))}
    if module.bias is not None:
        axes[f"{name}.bias"] = (outputs,)
    return axes


def _vector_axes(name: str, module: nn.Module, group: str | None) -> dict[str, tuple[str | None, ...]]:
    vectors: Iterable[str] = (key for key, tensor in module.state_dict().items() if tensor.ndim == 1)
    return {f"{name}.{key}": (group,) for key in vectors}

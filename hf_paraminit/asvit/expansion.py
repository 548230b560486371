"""Handing trained weights on to the next growth step (experimental): wider by linear maps, deeper by idle blocks.

LiGO (ICLR 2023, arXiv 2303.00980) for a network of stages: a matrix W becomes E_out W E_in^T, and added neurons are the
rows F of E_out = [I; F]. Here E_in is the pseudo-inverse of E_out transposed, so that the layer behind undoes what was
added: norms and noise aside, the larger network starts as the function that the smaller one learned, as in Net2Net.
"""

# Axes: d neurons of the donor, w of the network that is started, w - d of them added.

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from hf_paraminit.asvit.architecture import NUM_STAGES, Architecture
from hf_paraminit.asvit.errors import ScoreError
from hf_paraminit.asvit.model import AsViT
from hf_paraminit.asvit.probe import seeded

NOISE = 0.1  # norm of what is added to each row of F: equal neurons would never become different
GRADIENT_CLIP = 1.0

BatchAt = Callable[[int], tuple[Tensor, Tensor]]

# What the neurons of a parameter's first and last dimension are, by its name; None where they stay as they are.
NEURONS: tuple[tuple[str, str | None, str | None], ...] = (
    (r"patch_embed\..*", "stream", None),
    (r"layers\.\d+\.blocks\.\d+\.(norm1|mlps\.0\.0)\..*", "stream", None),
    (r"layers\.\d+\.blocks\.\d+\.attn\.qkv\.weight", "qkv", "stream"),
    (r"layers\.\d+\.blocks\.\d+\.attn\.qkv\.bias", "qkv", None),
    (r"layers\.\d+\.blocks\.\d+\.attn\.proj\.weight", "stream", "heads"),
    (r"layers\.\d+\.blocks\.\d+\.mlps\.0\.1\.fc1\.weight", "hidden", "stream"),
    (r"layers\.\d+\.blocks\.\d+\.mlps\.0\.1\.fc1\.bias", "hidden", None),
    (r"layers\.\d+\.blocks\.\d+\.mlps\.0\.1\.fc2\.weight", "stream", "hidden"),
    (r"layers\.\d+\.blocks\.\d+\.(attn\.proj|mlps\.0\.1\.fc2)\.bias", "stream", None),
    (r"layers\.\d+\.downsample\.norm\..*", "patches", None),
    (r"layers\.\d+\.downsample\.reduction\.weight", "next stream", "patches"),
    (r"norm\..*", "last stream", None),
    (r"pre_logits\.fc\.weight", "features", "last stream"),
    (r"pre_logits\.fc\.bias", "features", None),
    (r"head\.weight", None, "features"),
    (r"head\.bias", None, None),
)
POSITION = "absolute_pos_embed"
BLOCK = re.compile(r"(layers\.(\d+)\.blocks\.)(\d+)(\..*)")
BRANCH_ENDS = re.compile(r"(attn\.proj|mlps\.0\.1\.fc2)\.(weight|bias)$")


def hand_on(
    model: nn.Module,
    names: Sequence[str],
    *,
    donor: AsViT,
    noise: float = NOISE,
    steps: int = 0,
    batches: BatchAt | None = None,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Weights for an As-ViT from one that it was grown from; pass it as `init=`.

        timm.create_model("asvit", arch=series[1], init=hand_on, init_kwargs={"donor": trained})

    Args:
        model: As-ViT of the donor's topology, nowhere smaller.
        names: Parameters that are wanted.
        donor: The smaller trained network.
        noise: Norm of the noise on each added neuron.
        steps: Optimiser steps in which the added rows are learned, through the larger network.
        batches: What to learn them from: a function from the step to (images, labels).
        learning_rate: Of AdamW, for those steps.
        seed: Of choice and noise of the added neurons.

    Returns:
        All parameters of these names, except a classifier for other classes and a position embedding for another grid.

    Raises:
        ScoreError: Donor and model do not fit each other, or steps without batches.
    """
    if not isinstance(model, AsViT) or not isinstance(donor, AsViT):
        found = f"a {type(donor).__name__} for a {type(model).__name__}"
        raise ScoreError(f"Weights are handed on from one As-ViT to another, found {found}.")
    if steps and batches is None:
        raise ScoreError(f"Learning the added neurons in {steps} steps needs batches=f with f(step) -> images, labels.")
    growth = Expansion(donor, Architecture.parse(model.arch), noise=noise, seed=seed)
    if steps:
        assert batches is not None
        growth.learn(model, batches, steps=steps, learning_rate=learning_rate)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    grown = {name: value.detach() for name, value in growth.materialize().items()}
    return {name: grown[name] for name in names if name in grown and grown[name].shape == shapes[name]}


class Expansion(nn.Module):
    """The maps from one network to a larger one. Its parameters are the rows F, by the neurons that they add.

    Args:
        donor: The smaller network; its parameters are not trained.
        arch: The larger one.
        noise: as for `hand_on`.
        seed: as for `hand_on`.

    Raises:
        ScoreError: Another topology, or fewer blocks or channels than the donor.
    """

    def __init__(self, donor: AsViT, arch: Architecture, *, noise: float = NOISE, seed: int = 0) -> None:
        super().__init__()
        old = Architecture.parse(donor.arch)
        _check_growth(old, arch)
        self.old, self.new = old, arch
        self.values = {name: value.detach().float() for name, value in donor.named_parameters()}
        self.rows = nn.ParameterDict()
        with seeded(seed):
            for key, (size, new_size) in self._sizes().items():
                picked = F.one_hot(torch.randint(size, (new_size - size,)), size).float()
                self.rows[key] = nn.Parameter(picked + noise * size**-0.5 * torch.randn(new_size - size, size))

    def materialize(self) -> dict[str, Tensor]:
        """The larger network's parameters by name; differentiable in the rows."""
        pairs = {key: _out_and_in(rows) for key, rows in self.rows.items()}
        return {name: self._grown(name, source, pairs) for name, source in self._sources().items()}

    def learn(self, model: AsViT, batches: BatchAt, *, steps: int, learning_rate: float) -> list[float]:
        """Train the rows through a copy of the larger network; returns the loss of each step."""
        replica = copy.deepcopy(model).requires_grad_(False).train()
        shapes = {name: parameter.shape for name, parameter in replica.named_parameters()}
        optimizer = torch.optim.AdamW(self.parameters(), learning_rate, weight_decay=0.0)
        losses = []
        with torch.enable_grad():
            for step in range(steps):
                values = {n: v for n, v in self.materialize().items() if n in shapes and v.shape == shapes[n]}
                images, labels = batches(step)
                loss = F.cross_entropy(functional_call(replica, values, (images,)), labels)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.parameters(), GRADIENT_CLIP)
                optimizer.step()
                losses.append(loss.item())
        return losses

    def _sources(self) -> dict[str, str]:
        """Parameter of the larger network -> the donor's; an added block has those of the last one of its stage."""
        sources = {}
        for name in self.values:
            match = BLOCK.fullmatch(name)
            if match is None:
                sources[name] = name
                continue
            head, stage, block, tail = match[1], int(match[2]), int(match[3]), match[4]
            sources[name] = name
            if block == self.old.depths[stage] - 1:
                sources |= {f"{head}{added}{tail}": name for added in range(block + 1, self.new.depths[stage])}
        return sources

    def _grown(self, name: str, source: str, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        value = self.values[source]
        if name == POSITION:
            return _mapped(value, -1, pairs["stage 0"][0])
        out, into = next((out, into) for pattern, out, into in NEURONS if re.fullmatch(pattern, name))
        if out is not None:
            value = self._mapped_rows(value, name, out, pairs)
        if into is not None:
            axis = self._axis(name, into)
            value = _mapped(value, 1, pairs[axis.key][1], axis)
        is_added = name != source
        return torch.zeros_like(value) if is_added and BRANCH_ENDS.search(name) else value

    def _mapped_rows(self, value: Tensor, name: str, kind: str, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        axis = self._axis(name, kind)
        out, into = pairs[axis.key]
        if kind != "qkv":
            return _mapped(value, 0, out, axis)
        # Queries grow as values do and keys the other way, which leaves their products; the model divides these by the
        # root of the new head's size.
        scale = (len(out) / out.shape[1]) ** 0.5
        parts = zip(value.chunk(3), (scale * out, into, out), strict=True)
        return torch.cat([_mapped(part, 0, matrix, axis) for part, matrix in parts])

    def _axis(self, name: str, kind: str) -> _Axis:
        """Which rows grow the neurons of a parameter, and how these are laid out."""
        place = re.match(r"layers\.(\d+)\.(blocks\.\d+)?", name)
        stage = int(place[1]) if place else 0
        block = f"{place[0]} ".replace(".", "/") if place else ""
        if kind == "patches":
            return _Axis(f"stage {stage}", inner=self.old.patch_sizes[stage + 1] ** 2)
        if kind in ("qkv", "heads"):
            return _Axis(f"{block}heads", groups=self.old.stage_heads[stage])
        keys = {
            "stream": f"stage {stage}",
            "next stream": f"stage {stage + 1}",
            "last stream": f"stage {NUM_STAGES - 1}",
            "hidden": f"{block}hidden",
            "features": "features",
        }
        return _Axis(keys[kind])

    def _sizes(self) -> dict[str, tuple[int, int]]:
        """Key of the rows -> neurons of the donor and of the larger network."""
        old, new = self.old, self.new
        sizes = {f"stage {i}": (old.dims[i], new.dims[i]) for i in range(NUM_STAGES)}
        sizes["features"] = (old.dims[-1], new.dims[-1])
        for i, depth in enumerate(new.depths):
            heads, ratio = old.stage_heads[i], old.ffn_ratios[i]
            for j in range(depth):
                block = f"layers/{i}/blocks/{j} "
                sizes[f"{block}heads"] = (old.inner_dims[i] // heads, new.inner_dims[i] // heads)
                sizes[f"{block}hidden"] = (ratio * old.dims[i], ratio * new.dims[i])
        return sizes


@dataclass(frozen=True)
class _Axis:
    """Neurons of one dimension: `groups` times as many (heads), each with `inner` values (places in a kernel)."""

    key: str
    groups: int = 1
    inner: int = 1


def _out_and_in(rows: Tensor) -> tuple[Tensor, Tensor]:
    """E = [I; F] and its pseudo-inverse transposed, (w, d) both: out^T in is the identity."""
    out = torch.cat([torch.eye(rows.shape[1]), rows])
    return out, torch.linalg.solve(out.T @ out, out.T).T


def _mapped(value: Tensor, dim: int, matrix: Tensor, axis: _Axis | None = None) -> Tensor:
    """Apply a (w, d) matrix to the neurons along one dimension."""
    groups, inner = (1, 1) if axis is None else (axis.groups, axis.inner)
    moved = value.movedim(dim, 0)
    rest = moved.shape[1:]
    grown = matrix @ moved.reshape(groups, matrix.shape[1], -1)
    return grown.reshape(groups * len(matrix) * inner, *rest).movedim(0, dim)


def _check_growth(old: Architecture, new: Architecture) -> None:
    if old.topology != new.topology:
        raise ScoreError(
            f"Weights are handed on within one topology, found {old.topology} for the donor and {new.topology} for the "
            "larger network. Other networks start with init='ghn3', or init='front' with a donor."
        )
    is_smaller = any(b < a for a, b in zip((*old.depths, *old.dims), (*new.depths, *new.dims), strict=True))
    if is_smaller or any(b < a for a, b in zip(old.inner_dims, new.inner_dims, strict=True)):
        raise ScoreError(
            f"Weights are handed on to larger networks, found {old} for the donor and {new} for the network. Choose a "
            "smaller donor, or init='weight-selection'."
        )

"""Random DeepNets-1M architectures (arXiv 2110.13100, appendix A), drawn with NumPy only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from hf_paraminit.deepnets.genotype import (
    NUM_INPUT_STATES,
    OPERATIONS,
    ArchitectureError,
    Connection,
    Genotype,
)
from hf_paraminit.deepnets.operations import NUM_HEADS
from hf_paraminit.deepnets.wiring import wire

Choice = TypeVar("Choice")

# Reduction cells of half the architectures keep to these, as hand-made networks do.
POOLING_OPERATIONS = ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect")
LARGE_CONVOLUTIONS = ("conv_5x5", "conv_7x7")
MAX_CANDIDATES = 1000
VIT_PREPROC_SHARE = 0.2
# Only small networks train without normalisation, which "mixed" leaves to them.
NORMS: dict[str, tuple[str | None, ...]] = {"mixed": ("bnorm", None), "always": ("bnorm",), "never": (None,)}


@dataclass(frozen=True, kw_only=True)
class ArchitectureSpace:
    """The ranges architectures are drawn from; the defaults are those of the training split of DeepNets-1M.

    Args:
        min_cells: fewest cells.
        max_cells: most cells.
        min_steps: fewest steps in a cell.
        max_steps: most steps in a cell.
        max_steps_deep: most steps in the cells of a deep network.
        deep_thresholds: a network is deep when it has more cells than one of these, drawn for each architecture.
        widths: widths C of the first cells.
        classifier_widths: widths between the linear layers of the classifier.
        max_parameters: most parameters of the network, its classifier included.
        allow_attention: whether vision transformers may be drawn.
        norm: who goes without normalisation: half of the small networks, no network, or all.
        preproc_share: share of networks without attention that adapt the inputs of their cells although they could
            do without.
    """

    min_cells: int = 4
    max_cells: int = 18
    min_steps: int = 1
    max_steps: int = 4
    max_steps_deep: int = 2
    deep_thresholds: Sequence[int] = (7, 8, 9, 10)
    widths: Sequence[int] = (32, 48, 64, 80, 96, 112, 128)
    classifier_widths: Sequence[int] = (64, 128, 192, 256, 320, 384, 448, 512)
    max_parameters: int = 10_000_000
    allow_attention: bool = True
    norm: Literal["mixed", "always", "never"] = "mixed"
    preproc_share: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_cells <= self.max_cells:
            raise ArchitectureError(f"Cells must span 1 <= min <= max; found {self.min_cells} to {self.max_cells}.")
        if not 1 <= self.min_steps <= min(self.max_steps, self.max_steps_deep):
            raise ArchitectureError(
                f"Cells need at least one step; found max_steps={self.max_steps}, max_steps_deep="
                f"{self.max_steps_deep} and min_steps={self.min_steps}, which must exceed neither."
            )
        if not (self.deep_thresholds and self.widths and self.classifier_widths):
            raise ArchitectureError("deep_thresholds, widths and classifier_widths must each offer at least one value.")
        if any(width < NUM_HEADS or width % NUM_HEADS for width in self.widths):
            raise ArchitectureError(
                f"widths must be multiples of {NUM_HEADS}, the attention heads; found {self.widths}."
            )


def sample_network_arguments(
    generator: np.random.Generator,
    space: ArchitectureSpace | None = None,
    *,
    num_classes: int = 10,
    is_imagenet_input: bool = False,
) -> dict[str, Any]:
    """Draw one architecture.

    Args:
        generator: source of all random numbers.
        space: ranges to draw from; None for those of DeepNets-1M's training split.
        num_classes: number of classes.
        is_imagenet_input: draw a network for 224x224 images rather than 32x32.

    Returns:
        JSON values: keyword arguments of `DeepNetsNetwork`.

    Raises:
        ArchitectureError: out of `MAX_CANDIDATES` candidates none is connected and small enough.
    """
    space = space or ArchitectureSpace()
    for _ in range(MAX_CANDIDATES):
        arguments = sample_candidate(generator, space)
        if arguments is None:
            continue
        arguments |= {"num_classes": num_classes, "is_imagenet_input": is_imagenet_input}
        if count_parameters(arguments) <= space.max_parameters:
            return arguments
    raise ArchitectureError(
        f"None of {MAX_CANDIDATES} architectures drawn from {space} has at most {space.max_parameters} parameters. "
        "Raise max_parameters, or lower the widths or the number of cells."
    )


def count_parameters(arguments: Mapping[str, Any]) -> int:
    """Count the parameters of the network with these constructor arguments, without building it."""
    return wire(arguments).num_parameters


def sample_genotype(generator: np.random.Generator, num_steps: int, *, allow_attention: bool = True) -> Genotype:
    """Draw the two cells of an architecture.

    The published generator ranks operations and input states by a softmax of small Gaussian noise. All rows and
    columns of that noise are exchangeable, so it draws uniformly: two different states for each step, in random order,
    and one operation for each.
    """
    only_pool = generator.random() < 0.5
    drop_states = num_steps > 1 and generator.random() < 0.5
    # With a single step, "none" could leave a cell without any output.
    allowed = [
        operation
        for operation in OPERATIONS
        if (operation != "none" or num_steps > 1) and (operation != "msa" or allow_attention)
    ]
    allowed_in_reduction = [operation for operation in allowed if operation in POOLING_OPERATIONS or not only_pool]
    last_state = NUM_INPUT_STATES + num_steps - 1
    concat = [state for state in range(NUM_INPUT_STATES, last_state) if not drop_states or generator.random() < 0.5] + [
        last_state
    ]
    return Genotype(
        normal=_sample_connections(generator, num_steps, allowed),
        normal_concat=tuple(concat),
        reduce=_sample_connections(generator, num_steps, allowed_in_reduction),
        reduce_concat=tuple(concat),
    )


def _sample_connections(
    generator: np.random.Generator, num_steps: int, operations: Sequence[str]
) -> tuple[Connection, ...]:
    connections: list[Connection] = []
    for step in range(num_steps):
        states = generator.choice(NUM_INPUT_STATES + step, size=2, replace=False)
        connections += [(_choose(generator, operations), int(state)) for state in states]
    return tuple(connections)


def sample_candidate(generator: np.random.Generator, space: ArchitectureSpace) -> dict[str, Any] | None:
    """Draw all constructor arguments but the task's; None when the genotype is one that DeepNets-1M leaves out."""
    num_cells = int(generator.integers(space.min_cells, space.max_cells, endpoint=True))
    is_deep = num_cells > _choose(generator, space.deep_thresholds)
    max_steps = space.max_steps_deep if is_deep else space.max_steps
    num_steps = int(generator.integers(space.min_steps, max_steps, endpoint=True))
    genotype = sample_genotype(generator, num_steps, allow_attention=space.allow_attention)
    if not _is_admissible(genotype) or not genotype.is_connected(num_cells):
        return None
    is_vit = genotype.has_attention
    C_mult = _choose(generator, (1, 2))
    needs_preproc = num_steps > 1 or C_mult > 1
    is_small = num_cells <= space.min_cells + 1 and num_steps <= space.max_steps_deep
    stem_type = _choose(generator, (0, 1))
    preproc_share = VIT_PREPROC_SHARE if is_vit else space.preproc_share
    return {
        "C": _choose(generator, space.widths),
        "genotype": genotype.to_dict(),
        "n_cells": num_cells,
        "ks": _choose(generator, (3, 5, 7)),
        "stem_type": stem_type,
        "stem_pool": stem_type == 0 and bool(generator.random() < 0.5),
        "norm": _choose(generator, NORMS["always" if space.norm == "mixed" and not is_small else space.norm]),
        "preproc": needs_preproc or bool(generator.random() < preproc_share),
        "C_mult": C_mult,
        "fc_layers": _choose(generator, (1, 2)),
        "fc_dim": _choose(generator, space.classifier_widths),
        "glob_avg": is_vit or is_deep or bool(generator.random() < 0.9),
    }


def _is_admissible(genotype: Genotype) -> bool:
    """Whether the genotype can learn at all and is not dominated by its most expensive operations."""
    has_convolution = any("conv" in operation for operation in genotype.operations)
    if not has_convolution and not genotype.has_attention:
        return False
    if "cse" in genotype.operations and not has_convolution:
        return False
    for connections in (genotype.normal, genotype.reduce):
        operations = [operation for operation, _ in connections]
        if operations.count("cse") > 1 or sum(operations.count(large) for large in LARGE_CONVOLUTIONS) > 1:
            return False
    return True


def _choose(generator: np.random.Generator, choices: Sequence[Choice]) -> Choice:
    return choices[int(generator.integers(len(choices)))]

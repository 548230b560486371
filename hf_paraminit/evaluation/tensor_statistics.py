"""Numbers that say how a tensor starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from hf_paraminit.graphs.primitives import is_instance_of

# Rank is taken of a block of this side: a random block has full rank, and a decomposition of it takes milliseconds.
RANK_SIDE = 128
# Narrower kernels are full of coincidences: signs, shared zeros, rows of one number.
MIN_SIDE = 8
MAX_COMPARED_ELEMENTS = 2**26  # comparing rows needs eight bytes per element
_HASH_SEED = 0


@dataclass(frozen=True, slots=True)
class ValueStatistics:
    """Of the finite values of a tensor; see `TensorRow`."""

    mean: float
    std: float
    max_abs: float
    zeros: float
    not_finite: int
    denormal: float


@dataclass(frozen=True, slots=True)
class RowStatistics:
    """Of the output units of a kernel; see `TensorRow`."""

    rank: int | None
    rank_limit: int | None
    zero_rows: float
    duplicate_rows: int


def describe_values(values: Tensor) -> ValueStatistics:
    """Scale and oddities of a tensor of any shape, float32, on the CPU, not empty."""
    is_finite = values.isfinite()
    not_finite = int((~is_finite).sum())
    finite = values[is_finite] if not_finite else values
    if finite.numel() == 0:
        nan = float("nan")
        return ValueStatistics(nan, nan, nan, 0.0, not_finite, 0.0)
    magnitude = finite.abs()
    zeros = (magnitude == 0).float().mean().item()
    below_normal = (magnitude < torch.finfo(torch.float32).tiny).float().mean().item()
    # squares of uninitialised memory leave float32's range
    is_large = magnitude.max().item() > 1e15
    spread = finite.double() if is_large else finite
    return ValueStatistics(
        mean=spread.mean().item(),
        std=spread.std(correction=0).item(),
        max_abs=magnitude.max().item(),
        zeros=zeros,
        not_finite=not_finite,
        denormal=below_normal - zeros,
    )


def output_units(kernel: Tensor, owner: nn.Module) -> Tensor:
    """A kernel as a matrix with one row per output unit; some layers keep the inputs first."""
    is_transposed = isinstance(owner, _ConvTransposeNd) or is_instance_of(owner, "transformers", "Conv1D")
    return (kernel.transpose(0, 1) if is_transposed else kernel).flatten(1)


def describe_rows(rows: Tensor) -> RowStatistics:
    """Rank, empty and repeated rows of a kernel.

    Args:
        rows: (output units, fan-in), float32, finite, on the CPU.
    """
    is_zero = (rows == 0).all(1)
    num_duplicates = 0
    if min(rows.shape) >= MIN_SIDE and rows.numel() <= MAX_COMPARED_ELEMENTS:
        hashes = row_hashes(rows[~is_zero])
        num_duplicates = len(hashes) - len(hashes.unique())
    side = min(*rows.shape, RANK_SIDE)
    is_ranked = side >= MIN_SIDE and not bool(is_zero.all())
    block = rows[~is_zero][:RANK_SIDE, :RANK_SIDE]
    is_ranked = is_ranked and min(block.shape) >= MIN_SIDE
    return RowStatistics(
        rank=int(torch.linalg.matrix_rank(block)) if is_ranked else None,
        rank_limit=min(block.shape) if is_ranked else None,
        zero_rows=is_zero.float().mean().item(),
        duplicate_rows=num_duplicates,
    )


def row_hashes(rows: Tensor) -> Tensor:
    """One int64 per row, equal for rows of the same bits: exact, unlike a matrix product, whatever the blocking."""
    generator = torch.Generator().manual_seed(_HASH_SEED)
    factors = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=generator)
    return (rows.contiguous().view(torch.int32).long() * factors).sum(1)


def share_of_locked_rows(rows: Tensor, gradients: Tensor) -> float:
    """Share of the repeated rows whose gradient equals that of the row they repeat, so that they never separate.

    Gradients of zero do not count: such units were off for every image of the batch.

    Args:
        rows: (output units, fan-in).
        gradients: The loss's gradient, same shape.
    """
    is_zero = (rows == 0).all(1)
    rows, gradients = rows[~is_zero], gradients[~is_zero]
    _, groups = row_hashes(rows).unique(return_inverse=True)
    first = torch.full((int(groups.max()) + 1,), len(rows)).scatter_reduce(
        0, groups, torch.arange(len(rows)), reduce="amin"
    )[groups]
    is_repeat = first != torch.arange(len(rows))
    difference = (gradients - gradients[first]).abs().amax(1)
    largest = gradients.abs().amax(1)
    # rounding of a sum over positions and images stays below this
    is_locked = (difference <= 1e-4 * largest) & (largest > 0)
    return (is_locked & is_repeat).sum().item() / max(int(is_repeat.sum()), 1)

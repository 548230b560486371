"""Position tables of sines and cosines over a square grid (arXiv 1706.03762 in two dimensions, as in 2104.02057)."""

import math

import torch
from torch import Tensor

from hf_paraminit.initializers.formula import FormulaInitializer
from hf_paraminit.structure.model import ModelStructure

TEMPERATURE = 10000.0
MAX_PREFIX_ROWS = 2  # class and distillation token, unless the model declares more


def sincos_2d(side: int, dim: int) -> Tensor:
    """The table of a `side` x `side` grid in row-major order: blocks sin x, cos x, sin y, cos y of `dim` / 4 each.

    Returns:
        (side * side, dim) float32.
    """
    frequencies = TEMPERATURE ** -(torch.arange(dim // 4) / (dim // 4))
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [place.reshape(-1, 1) * frequencies for place in (x, y)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)


def grid_of(model: ModelStructure, name: str) -> tuple[int, int] | None:
    """Rows for tokens in front of the grid, and side of the grid; None where the table is no square grid.

    Args:
        model: the model.
        name: a position table, (rows, dim) or (1, rows, dim).
    """
    shape = model.module.get_parameter(name).shape
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != 1) or shape[-1] % 4:
        return None
    side = math.isqrt(shape[-2])
    num_prefix = shape[-2] - side**2
    return (
        (num_prefix, side)
        if num_prefix <= max(MAX_PREFIX_ROWS, getattr(model.module, "num_prefix_tokens", 0))
        else None
    )


def position_table(formula: FormulaInitializer, model: ModelStructure, name: str, scale: float) -> Tensor | None:
    """The table `name` with sines and cosines, rows for tokens left as they are; None where it is no square grid."""
    grid = grid_of(model, name)
    if grid is None:
        formula.skip(name, "a position table that is no square grid with a width divisible by 4")
        return None
    num_prefix, side = grid
    shape = model.module.get_parameter(name).shape
    waves = scale * sincos_2d(side, shape[-1])
    if not num_prefix:
        return waves.view(shape)
    table = formula.current(model, name)
    table.view(-1, shape[-1])[num_prefix:] = waves
    return table

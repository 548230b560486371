"""ZerO: identities and Hadamard matrices instead of random numbers (arXiv 2110.12661)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from scipy.linalg import hadamard
from torch import Tensor

from hf_paraminit.initializers.delta_orthogonal import at_centre
from hf_paraminit.initializers.family import StandardFamily
from hf_paraminit.initializers.formula import Drawn, FormulaConfig
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.structure.layers import WeightLayer
from hf_paraminit.structure.model import ModelStructure


@register_initializer(
    "zero-hadamard", summary="identities and Hadamard matrices, no random numbers", paper="2110.12661"
)
class ZeroHadamard(StandardFamily):
    """W = I where out <= in; W = c I_(out x m) H_m I_(m x in) where out > in, m the next power of two above out.

    H_m is Sylvester's matrix and c = m^(-1/2), as in the released example, so that the columns are orthonormal before
    rows are cut; the paper prints a factor sqrt(2) more, which `gain` can supply. Kernels hold the matrix at their
    centre tap. The last layers of residual branches and the classifier are zero. Every seed gives the same values.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(FormulaConfig):
        """Settings.

        Attributes:
            gain: factor of the Hadamard matrices.
        """

        gain: float = 1.0

    config: Config
    rule = "identity or Hadamard"

    def draw(self, model: ModelStructure, names: Sequence[str]) -> Iterator[Drawn]:
        yield from super().draw(model, names)
        for name in model.ends:
            yield Drawn(
                name,
                "zero: last of its branch, or classifier",
                torch.zeros_like(model.module.get_parameter(name), device="cpu", dtype=torch.float32),
            )

    def weight(self, layer: WeightLayer, model: ModelStructure) -> Tensor:
        block = propagating_matrix(layer.shape[0] // layer.groups, layer.shape[1], self.config.gain)
        return at_centre(block.repeat(layer.groups, 1), layer)


def propagating_matrix(rows: int, columns: int, gain: float) -> Tensor:
    """(rows, columns): a partial identity, or when it widens a scaled cut of a Hadamard matrix."""
    if rows <= columns:
        return torch.eye(rows, columns)
    size = 1 << (rows - 1).bit_length()
    return gain * size**-0.5 * torch.from_numpy(hadamard(size)[:rows, :columns]).float()

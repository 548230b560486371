"""The low-rank decoder of LoGAH (arXiv 2405.16287, section 4.1): kernels as products, as large as the target asks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from hf_paraminit.ghn.config import FACTOR_LENGTH, GHNConfig
from hf_paraminit.ghn.slots import Role, Slot

# Legend: n slots, V nodes of all graphs, d hidden width, r rank, L rows of a factor, o largest output channels of the
# classifier's hidden layer, K classes.


class LowRankDecoder(nn.Module):
    """Decodes matrices, kernels, position tables and classifier weights as products of two factors.

    A kernel (outputs, inputs, height, width) is the product of (outputs * height, r) and (r, inputs * width). Each
    factor has L rows, which suffice for 2048 channels of 16 x 16 kernels; a target that asks for more gets its channels
    repeated. Only the rows that a target needs are computed.

    Args:
        config: Architecture, with `low_rank` r.
    """

    def __init__(self, config: GHNConfig) -> None:
        super().__init__()
        assert config.low_rank is not None
        dim, self.rank = config.hidden_dim, config.low_rank
        self.max_outputs = config.max_shape[0]
        widths = (dim, 4 * dim, 8 * dim, 2 * self.rank**2)
        first, second, third = (nn.Linear(*pair) for pair in pairwise(widths))
        self.fc = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        self.factors = nn.Sequential(nn.ReLU(), nn.Linear(self.rank, FACTOR_LENGTH))
        self.class_layer_predictor = nn.Sequential(nn.ReLU(), nn.Linear(self.max_outputs, config.num_classes))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, the arithmetic and the blocks."""
        return cast(nn.Linear, self.factors[1]).weight.dtype

    @property
    def last_layers(self) -> list[nn.Sequential]:
        """Maps whose last layer starts small; a product of two factors is small by itself."""
        return [self.class_layer_predictor]

    def forward(self, states: Tensor, slots: Sequence[Slot]) -> dict[Slot, Tensor]:
        """Decode one block per slot.

        Args:
            states: (V, d) node states.
            slots: Slots of role KERNEL, POSITION_TABLE or CLASS_WEIGHT.

        Returns:
            Per slot (outputs, inputs, height, width), as large as the factors allow; of classifiers the outputs are
            min(outputs, K).
        """
        nodes = torch.tensor([slot.node for slot in slots], device=states.device)
        codes = torch.relu(self.fc(states[nodes].to(self.dtype)).unflatten(1, (2, self.rank, self.rank)))
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for position, slot in enumerate(slots):
            groups[self._num_rows(slot)].append(position)
        blocks: dict[Slot, Tensor] = {}
        for (left_rows, right_rows), positions in groups.items():
            left, right = codes[positions].unbind(1)
            products = self._factor(left, left_rows).transpose(1, 2) @ self._factor(right, right_rows)
            for position, product in zip(positions, products, strict=True):
                blocks[slots[position]] = self._finish(product, slots[position])
        return blocks

    def _decoded_outputs(self, slot: Slot) -> int:
        return self.max_outputs if slot.role is Role.CLASS_WEIGHT else slot.channels[0]

    def _num_rows(self, slot: Slot) -> tuple[int, int]:
        """Rows of either factor: whole channels only."""
        height, width = slot.kernel_size
        outputs = min(self._decoded_outputs(slot), max(1, FACTOR_LENGTH // height))
        return outputs * height, min(slot.channels[1], max(1, FACTOR_LENGTH // width)) * width

    def _factor(self, codes: Tensor, num_rows: int) -> Tensor:
        """Map (n, r, r) to (n, r, num_rows)."""
        linear = cast(nn.Linear, self.factors[1])
        return nn.functional.linear(codes, linear.weight[:num_rows], linear.bias[:num_rows])

    def _finish(self, product: Tensor, slot: Slot) -> Tensor:
        height, width = slot.kernel_size
        kernel = product.unflatten(0, (-1, height)).unflatten(2, (-1, width)).transpose(1, 2)
        if slot.role is not Role.CLASS_WEIGHT:
            return kernel
        linear = cast(nn.Linear, self.class_layer_predictor[1])
        rows = slice(slot.shape[0])
        weight = linear.weight[rows] @ torch.relu(kernel[:, :, 0, 0]) + linear.bias[rows].unsqueeze(1)
        return weight[..., None, None]

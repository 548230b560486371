"""Decoders from node states to blocks of weights (GHN-3, arXiv 2303.04143, section 3; ppuda, arXiv 2110.13100, 3.1).

Only the rows, positions and channels that a target needs are computed; the result equals decoding the full maximal
tensor and cutting it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_paraminit.ghn.config import GHNConfig
from hf_paraminit.ghn.slots import Role, Slot

# Legend: V nodes of all graphs, d hidden width, o/c largest output/input channels, s largest kernel side, K classes,
# M = max(o, c), P positions of a kernel, R rows = sum over slots of their positions.


class KernelDecoder(nn.Module):
    """Decodes matrices, kernels, position tables and classifier weights."""

    def __init__(self, config: GHNConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.max_outputs, self.max_inputs, self.max_side, _ = config.max_shape
        # GHN-1 and GHN-2 cut kernels from the top left corner, GHN-3 from the centre.
        self.is_centred = config.graph_network == "graphormer"
        self.fc = nn.Sequential(nn.Linear(dim, 4 * dim * self.max_side**2))
        self.conv = nn.Sequential(
            nn.Linear(4 * dim, 8 * dim), nn.ReLU(), nn.Linear(8 * dim, self.max_outputs * self.max_inputs)
        )
        self.class_layer_predictor = nn.Sequential(nn.ReLU(), nn.Linear(self.max_outputs, config.num_classes))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, the arithmetic and the blocks: float32 as published; bfloat16 takes half the memory."""
        return cast(nn.Linear, self.conv[2]).weight.dtype

    @property
    def last_layers(self) -> list[nn.Sequential]:
        """Maps whose last layer starts small."""
        return [self.conv, self.class_layer_predictor]

    def forward(self, states: Tensor, slots: Sequence[Slot]) -> dict[Slot, Tensor]:
        """Decode one block per slot.

        Args:
            states: (V, d) node states.
            slots: Slots of role KERNEL, POSITION_TABLE or CLASS_WEIGHT.

        Returns:
            Per slot (min(outputs, o or K), min(inputs, c), height, width).
        """
        hidden = self._hidden_rows(states.to(self.dtype), slots)
        blocks: dict[Slot, Tensor] = {}
        # Slots of equal channel counts share one matrix product, whatever their kernel sizes.
        for (outputs, inputs), group in _group_by(slots, self._decoded_channels).items():
            rows = torch.cat([hidden[slot] for slot in group])
            decoded = self._decode_rows(rows, outputs, inputs)
            for slot, block in zip(group, decoded.split([len(hidden[slot]) for slot in group], dim=1), strict=True):
                blocks[slot] = self._finish(block, slot)
        return blocks

    def _decoded_channels(self, slot: Slot) -> tuple[int, int]:
        outputs, inputs = slot.channels
        if slot.role is Role.CLASS_WEIGHT:  # the class map mixes all outputs
            outputs = self.max_outputs
        return min(outputs, self.max_outputs), min(inputs, self.max_inputs)

    def _kept_side(self, size: int) -> slice:
        """Rows (or columns) of the s x s grid that a kernel of `size` takes."""
        kept = min(size, self.max_side)
        start = max(0, self.max_side // 2 - size // 2) if self.is_centred else 0
        return slice(start, start + kept)

    def _hidden_rows(self, states: Tensor, slots: Sequence[Slot]) -> dict[Slot, Tensor]:
        """Return (P, 8d) per slot: the activations in front of the last linear map, at the slot's positions."""
        hidden: dict[Slot, Tensor] = {}
        for kernel_size, group in _group_by(slots, lambda slot: slot.kernel_size).items():
            nodes = torch.tensor([slot.node for slot in group], device=states.device)
            codes = F.relu(self._spread(states[nodes], kernel_size))
            hidden.update(zip(group, F.relu(self.conv[0](codes)).unbind(1), strict=True))
        return hidden

    def _spread(self, states: Tensor, kernel_size: tuple[int, int]) -> Tensor:
        """Map (n, d) node states to (P, n, 4d): the first linear map, at the positions of a kernel only."""
        linear = cast(nn.Linear, self.fc[0])
        kept = (slice(None), *(self._kept_side(size) for size in kernel_size))
        weight = linear.weight.view(-1, self.max_side, self.max_side, linear.in_features)[kept]
        bias = linear.bias.view(-1, self.max_side, self.max_side)[kept]
        # Batched products read the strided weights where they are; gathering them first would copy up to all of them.
        kernel_rows = [
            torch.baddbmm(
                row_bias.T.unsqueeze(1), states.expand(row_bias.shape[1], -1, -1), row_weight.permute(1, 2, 0)
            )
            for row_weight, row_bias in zip(weight.unbind(1), bias.unbind(1), strict=True)
        ]
        return torch.cat(kernel_rows)

    def _decode_rows(self, rows: Tensor, outputs: int, inputs: int) -> Tensor:
        """Map (R, 8d) to (outputs, R, inputs), computing only those channels from weights that stay where they are."""
        linear = cast(nn.Linear, self.conv[2])
        weight = linear.weight.view(self.max_outputs, self.max_inputs, -1)[:outputs, :inputs]
        bias = linear.bias.view(self.max_outputs, self.max_inputs)[:outputs, :inputs]
        if torch.is_grad_enabled():
            # One product, whose gradients are products too; those of a batched one would be made per output channel.
            flat = F.linear(rows, weight.flatten(0, 1), bias.flatten())
            return flat.unflatten(1, (outputs, inputs)).transpose(0, 1)
        return torch.baddbmm(bias.unsqueeze(1), rows.expand(outputs, -1, -1), weight.transpose(1, 2))

    def _finish(self, block: Tensor, slot: Slot) -> Tensor:
        """Turn (outputs, P, inputs) into (outputs, inputs, height, width)."""
        if slot.role is Role.CLASS_WEIGHT:
            return self._classify(block[:, 0], slot.shape[0])[..., None, None]
        height, width = slot.kernel_size
        kept = (min(height, self.max_side), min(width, self.max_side))
        kernel = block.transpose(1, 2).unflatten(2, kept)
        if kept != (height, width):
            kernel = F.interpolate(kernel, size=(height, width), mode="bilinear", align_corners=False)
        return kernel

    def _classify(self, block: Tensor, num_classes: int) -> Tensor:
        """Map (o, inputs) to (min(num_classes, K), inputs)."""
        activation, linear = self.class_layer_predictor[0], cast(nn.Linear, self.class_layer_predictor[1])
        weight, bias = linear.weight[:num_classes], linear.bias[:num_classes]
        return weight @ activation(block) + bias.unsqueeze(1)


class VectorDecoder(nn.Module):
    """Decodes 1-D tensors: row 0 is a norm layer's weight, row 1 any bias."""

    def __init__(self, config: GHNConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.fc = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, 2 * config.vector_dim))

    def forward(self, states: Tensor) -> Tensor:
        """Map (V, d) node states to (V, 2, M)."""
        return self.fc(states).unflatten(-1, (2, -1))


class ScaleDecoder(nn.Module):
    """Decodes one factor per tensor, for values that are drawn; an untrained one gives factors of 1."""

    def __init__(self, config: GHNConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        last = nn.Linear(4 * dim, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.fc = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), last)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and the arithmetic."""
        return cast(nn.Linear, self.fc[0]).weight.dtype

    def forward(self, states: Tensor, slots: Sequence[Slot]) -> Tensor:
        """Map (V, d) node states to the natural logarithms of the factors, one per slot, in their order."""
        nodes = torch.tensor([slot.node for slot in slots], dtype=torch.int64, device=states.device)
        return self.fc(states[nodes].to(self.dtype)).squeeze(1).float()


def _group_by(slots: Iterable[Slot], key: Callable[[Slot], tuple[int, int]]) -> dict[tuple[int, int], list[Slot]]:
    groups: dict[tuple[int, int], list[Slot]] = defaultdict(list)
    for slot in slots:
        groups[key(slot)].append(slot)
    return groups

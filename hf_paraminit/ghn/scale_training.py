"""Teaching a graph hypernetwork the scales that networks were found to start best from."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hf_paraminit.ghn.model import GHN
from hf_paraminit.graphs.graph import ComputationalGraph


@dataclass(frozen=True, eq=False)
class ScaledNetwork:
    """A network with known scales.

    Attributes:
        graph: Computational graph.
        shapes: Shape per parameter name.
        logarithms: Natural logarithm of the scale, per parameter that has a known one.
    """

    graph: ComputationalGraph
    shapes: Mapping[str, tuple[int, ...]]
    logarithms: Mapping[str, float]

    @classmethod
    def from_module(cls, ghn: GHN, network: nn.Module, scales: Mapping[str, float]) -> ScaledNetwork:
        """Trace a network; the module itself is left as it is."""
        graph = ghn.trace(copy.deepcopy(network))
        shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
        covered = set(graph.parameter_names) & scales.keys()
        return cls(graph, shapes, {name: float(np.log(scales[name])) for name in covered})


class ScaleTraining(nn.Module):
    """The training objective: mean squared error of the logarithms of the scales.

    Args:
        ghn: Hypernetwork that decodes scales.
    """

    def __init__(self, ghn: GHN) -> None:
        super().__init__()
        self.ghn = ghn

    def forward(self, batch: Sequence[ScaledNetwork]) -> dict[str, Tensor]:
        """Return `loss`, the mean over all tensors of the batch, and for the record `worst`, the largest error."""
        predicted = self.ghn.predict_scales([one.graph for one in batch], [one.shapes for one in batch])
        pairs = [
            (scales[name], logarithm)
            for scales, one in zip(predicted, batch, strict=True)
            for name, logarithm in one.logarithms.items()
        ]
        found = torch.stack([scale for scale, _ in pairs])
        wanted = torch.tensor([logarithm for _, logarithm in pairs], device=found.device)
        errors = found - wanted
        return {"loss": errors.square().mean(), "worst": errors.detach().abs().max()}


@dataclass(frozen=True, eq=False, kw_only=True)
class ScaleBatches:
    """Pure function from a batch index to networks with known scales, for the training loop.

    Attributes:
        networks: All of them.
        batch_size: Networks per step.
        seed: Decides which networks are drawn.
    """

    networks: Sequence[ScaledNetwork]
    batch_size: int
    seed: int = 0

    def __call__(self, index: int) -> list[ScaledNetwork]:
        chosen = np.random.default_rng([self.seed, index]).integers(len(self.networks), size=self.batch_size)
        return [self.networks[int(position)] for position in chosen]

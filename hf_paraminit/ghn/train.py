"""Meta-training of a graph hypernetwork (GHN-3, arXiv 2303.04143, section 3.3; GHN-2, arXiv 2110.13100, equation 2)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, Self, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.ghn.model import GHN
from hf_paraminit.graphs.graph import ComputationalGraph
from hf_paraminit.graphs.trace import trace

MOST_DRAWS = 100  # of meta-batches that are too large; the published limit refuses a few percent


@dataclass(frozen=True, eq=False)
class TargetNetwork:
    """A network that a hypernetwork learns on: its graph, and a skeleton that computes with given weights.

    Attributes:
        graph: Computational graph.
        skeleton: The network on the meta device. Batch norm uses batch statistics, since predicted networks have none.
        shapes: Shape per parameter name.
        defaults: Values of the parameters and buffers that no hypernetwork predicts.
    """

    graph: ComputationalGraph
    skeleton: nn.Module
    shapes: dict[str, tuple[int, ...]]
    defaults: dict[str, Tensor]

    @classmethod
    def from_module(cls, module: nn.Module, *, input_size: tuple[int, int, int] | None = None) -> TargetNetwork:
        """Trace a small real network; the module itself is left as it is."""
        return cls.from_graph(copy.deepcopy(module), trace(module, input_size=input_size))

    @classmethod
    def from_graph(cls, network: nn.Module, graph: ComputationalGraph) -> TargetNetwork:
        """Make a skeleton of a network with a known graph; the network is used up.

        Parameters on the meta device that the graph has no node for are of branches that the output does not need.
        """
        for layer in network.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.track_running_stats = False
                layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        covered = set(graph.parameter_names)
        kept = [(name, value) for name, value in network.named_parameters() if name not in covered]
        defaults = {
            name: value.detach().clone() for name, value in [*kept, *network.named_buffers()] if not value.is_meta
        }
        shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
        return cls(graph, network.to("meta"), shapes, defaults)

    def forward(self, weights: dict[str, Tensor], images: Tensor) -> Tensor:
        """Return the logits under given weights; of several outputs the first."""
        defaults = {name: value.to(images.device) for name, value in self.defaults.items()}
        output = functional_call(self.skeleton, {**defaults, **weights}, (images,))
        return output[0] if isinstance(output, tuple) else output


class Architectures(Protocol):
    """Where networks come from; pure in the index."""

    def __len__(self) -> int:
        """Number of networks."""
        ...

    def __getitem__(self, index: int, /) -> nn.Module:
        """Build a network, which declares its images as `expected_input_sz`."""
        ...

    def graph(self, index: int, /) -> ComputationalGraph | None:
        """Return its graph if it is known without tracing."""
        ...


class TargetNetworks(Sequence[TargetNetwork]):
    """The networks of a source, made when they are asked for; some are kept.

    Args:
        architectures: The source.
        kept: Most networks that are kept.
    """

    def __init__(self, architectures: Architectures, *, kept: int = 64) -> None:
        self.architectures = architectures
        self._made = lru_cache(maxsize=kept)(self._make)
        self._sizes = lru_cache(maxsize=2**16)(self._size)

    def __len__(self) -> int:
        return len(self.architectures)

    @overload
    def __getitem__(self, index: int) -> TargetNetwork: ...

    @overload
    def __getitem__(self, index: slice) -> list[TargetNetwork]: ...

    def __getitem__(self, index: int | slice) -> TargetNetwork | list[TargetNetwork]:
        if isinstance(index, slice):
            return [self._made(position) for position in range(*index.indices(len(self)))]
        return self._made(index)

    def num_nodes(self, index: int) -> int:
        """Nodes of a network's graph, found without building the network if its source allows."""
        return self._sizes(index)

    def _make(self, index: int) -> TargetNetwork:
        network, graph = self.architectures[index], self.architectures.graph(index)
        # "auto" keeps to the published kind of graph wherever it does the network justice.
        return TargetNetwork.from_graph(network, trace(network, mode="auto") if graph is None else graph)

    def _size(self, index: int) -> int:
        graph = self.architectures.graph(index)
        return len(self[index].graph if graph is None else graph)


@dataclass(frozen=True, eq=False)
class MetaBatch:
    """What one step learns from: several networks, all on the same images."""

    networks: Sequence[TargetNetwork]
    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        """Number of networks."""
        return len(self.networks)

    def halves(self) -> tuple[Self, ...]:
        """Parts that need less memory; none of a single network."""
        middle = len(self) // 2
        parts = (self.networks[:middle], self.networks[middle:]) if middle else ()
        return tuple(dataclasses.replace(self, networks=part) for part in parts)


class MetaTraining(nn.Module):
    """The training objective: mean cross entropy of the predicted networks plus a group lasso on their weights.

    Args:
        ghn: Hypernetwork to train.
        norm_penalty: Weight of the sum of un-squared Frobenius norms over all parameter tensors (GHN-3: 3e-5).
        label_smoothing: Smoothing of the targets (ImageNet: 0.1).
    """

    def __init__(
        self,
        ghn: GHN,
        *,
        norm_penalty: float = 3e-5,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.ghn = ghn
        self.norm_penalty = norm_penalty
        self.label_smoothing = label_smoothing

    def forward(self, batch: MetaBatch) -> dict[str, Tensor]:
        """Return `loss`, and for the record `cross_entropy`, `weight_norm`, `accuracy`, `top5`: means over networks."""
        device = self.ghn.device
        # Convolutions of DeepNets-1M, depthwise ones above all, take two thirds of the time in this layout on a CPU.
        images = batch.images.to(device, memory_format=torch.channels_last)
        targets = batch.targets.to(device)
        predictions = self.ghn.predict_batch(
            [network.graph for network in batch.networks], [network.shapes for network in batch.networks]
        )
        entropies, norms, hits = [], [], []
        for network, weights in zip(batch.networks, predictions, strict=True):
            logits = network.forward(weights, images)
            entropies.append(F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing))
            norms.append(torch.stack(torch._foreach_norm(list(weights.values()))).sum())
            ranked = logits.detach().topk(min(5, logits.shape[1])).indices == targets[:, None]
            hits.append(torch.stack([ranked[:, 0], ranked.any(1)]).float().mean(1))
        accuracy, top5 = torch.stack(hits).mean(0)
        cross_entropy, weight_norm = torch.stack(entropies).mean(), torch.stack(norms).mean()
        return {
            "loss": cross_entropy + self.norm_penalty * weight_norm,
            "cross_entropy": cross_entropy,
            "weight_norm": weight_norm,
            "accuracy": accuracy,
            "top5": top5,
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class MetaBatches:
    """Pure function from a batch index to a meta-batch, for the training loop.

    Networks join one by one: a hypernetwork that has learned to write one network learns the next ones faster. (On 16
    residual networks, after 700 batches: accuracy 32 % so, 19 % with all networks from the start.)

    Attributes:
        networks: Pool of target networks, in the order of joining.
        images_at: Pure function from a batch index to normalised images (B, 3, S, S) and labels (B,).
        meta_batch: Networks per step.
        first: Batches that see the first `meta_batch` networks only.
        joining: Batches over which the others join, evenly spaced.
        seed: Decides which networks meet which images.
        shards: Batches that a step's networks are shared out to, all on the same images: processes times accumulated
            batches. The result does not depend on it.
        max_nodes: Most nodes that the graphs of a step may have together; others are drawn instead.
    """

    networks: Sequence[TargetNetwork]
    images_at: Callable[[int], tuple[Tensor, Tensor]]
    meta_batch: int = 1
    first: int = 0
    joining: int = 0
    seed: int = 0
    shards: int = 1
    max_nodes: int | None = None

    def __post_init__(self) -> None:
        if self.meta_batch % self.shards:
            raise TrainingConfigError(
                f"A meta-batch of {self.meta_batch} networks cannot be shared out to {self.shards} batches (processes "
                "times accumulated batches): expected a multiple."
            )
        if not 1 <= self.meta_batch <= len(self.networks):
            raise TrainingConfigError(
                f"A meta-batch of {self.meta_batch} networks from a pool of {len(self.networks)}: expected 1 up to the "
                "size of the pool."
            )

    def __call__(self, index: int) -> MetaBatch:
        step, shard = divmod(index, self.shards)
        chosen = self._draw(step)[shard :: self.shards]
        images, targets = self.images_at(step)
        return MetaBatch([self.networks[int(position)] for position in chosen], images, targets)

    def _draw(self, step: int) -> np.ndarray:
        """Positions of a step's networks."""
        rng = np.random.default_rng([self.seed, step])
        for _ in range(MOST_DRAWS):
            chosen = rng.choice(self._num_joined(step), self.meta_batch, replace=False)
            if self.max_nodes is None or sum(map(self._num_nodes, chosen)) <= self.max_nodes:
                return chosen
        raise TrainingConfigError(
            f"{MOST_DRAWS} meta-batches of {self.meta_batch} networks all had more than {self.max_nodes} nodes. Allow "
            "more nodes, or take smaller meta-batches or networks."
        )

    def _num_nodes(self, position: int) -> int:
        networks, place = self.networks, int(position)
        return networks.num_nodes(place) if isinstance(networks, TargetNetworks) else len(networks[place].graph)

    def _num_joined(self, index: int) -> int:
        passed = index - self.first
        share = passed / self.joining if self.joining else float(passed >= 0)
        return max(self.meta_batch, min(len(self.networks), int(share * len(self.networks))))


def published_node_limit(meta_batch: int) -> int:
    """Most nodes of a step's graphs together, as GHN-3 was trained."""
    return 2200 * max(8, meta_batch) // 8

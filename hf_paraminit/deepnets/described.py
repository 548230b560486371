"""Networks of DeepNets-1M that are known by their records: drawn on the fly here, read from files in `dataset`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch

from hf_paraminit.deepnets.network import DeepNetsNetwork
from hf_paraminit.deepnets.sources import checked_index
from hf_paraminit.deepnets.splits import Record, Split, draw_record, draw_widths, find_split, network_arguments
from hf_paraminit.deepnets.wiring import wire
from hf_paraminit.graphs.graph import ComputationalGraph

VIRTUAL_EDGE_CUTOFF = 50  # of GHN-2 and GHN-3


class DescribedNetworks(ABC):
    """A source (see `sources.ArchitectureSource`) of networks of one split.

    Args:
        split: Name of the split.
        num_classes: Classes of the networks.
        is_imagenet_input: Build them for 224-pixel images rather than 32-pixel ones.
        seed: Of the widths that training networks get.
        wider: Draw these widths as GHN-3 does for ImageNet.
        device: Where to build them. On meta they cost no memory and no random numbers; elsewhere they start from
            torch's default initial values.
    """

    def __init__(
        self,
        split: str,
        *,
        num_classes: int = 10,
        is_imagenet_input: bool = False,
        seed: int = 0,
        wider: bool = False,
        device: str = "meta",
    ) -> None:
        self.split: Split = find_split(split)
        self.num_classes = num_classes
        self.is_imagenet_input = is_imagenet_input
        self.seed = seed
        self.wider = wider
        self.device = device

    @abstractmethod
    def __len__(self) -> int:
        """Number of networks."""

    @abstractmethod
    def record(self, index: int) -> Record:
        """Return what is known of a network."""

    def arguments(self, index: int) -> dict[str, Any]:
        """Return the arguments of `DeepNetsNetwork`, widths included."""
        index = checked_index(index, len(self))
        record = self.record(index)
        if self.split.has_stored_width:
            factor = self.split.width_factors[self.is_imagenet_input]
            widths = {"C": factor * record["C"], "fc_dim": record["fc_dim"]}
        else:
            rng = np.random.default_rng([self.seed, index])
            widths = draw_widths(record, rng, is_imagenet_input=self.is_imagenet_input, wider=self.wider)
        task = {"num_classes": self.num_classes}
        return network_arguments(record, is_imagenet_input=self.is_imagenet_input) | widths | task

    def __getitem__(self, index: int) -> DeepNetsNetwork:
        """Build a network."""
        with torch.device(self.device):
            return DeepNetsNetwork(**self.arguments(index))

    def graph(self, index: int) -> ComputationalGraph:
        """Return the graph of a network, without building it."""
        return wire(self.arguments(index)).to_graph(VIRTUAL_EDGE_CUTOFF)


class GeneratedNetworks(DescribedNetworks):
    """A split of DeepNets-1M without any file: each network is drawn when it is asked for.

    Args:
        split: Name of the split.
        length: Number of networks; by default as many as the split has.
        generator_seed: Seed of the networks; by default that of the split.
        **options: Those of `DescribedNetworks`.
    """

    def __init__(
        self, split: str = "train", *, length: int | None = None, generator_seed: int | None = None, **options: Any
    ) -> None:
        super().__init__(split, **options)
        self.generator_seed = generator_seed
        self._length = self.split.num_networks if length is None else length

    def __len__(self) -> int:
        return self._length

    def record(self, index: int) -> Record:
        """Draw the description of a network."""
        return draw_record(self.split, checked_index(index, len(self)), seed=self.generator_seed)[0]

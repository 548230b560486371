"""DeepNets-1M networks by the name of their split, and the two that belong to no file."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hf_paraminit.deepnets.dataset import StoredNetworks
from hf_paraminit.deepnets.described import VIRTUAL_EDGE_CUTOFF, DescribedNetworks, GeneratedNetworks
from hf_paraminit.deepnets.genotype import VIT
from hf_paraminit.deepnets.network import CIFAR_SIDE, IMAGENET_SIDE, DeepNetsNetwork
from hf_paraminit.deepnets.sources import checked_index
from hf_paraminit.deepnets.wiring import wire
from hf_paraminit.errors import MissingDependencyError
from hf_paraminit.graphs.graph import ComputationalGraph

PREDEFINED_SPLIT = "predefined"
PREDEFINED = ("ResNet-50", "ViT")


class PredefinedNetworks:
    """A source (see `sources.ArchitectureSource`) of two known networks: torchvision's ResNet-50 and a ViT of 12 cells.

    Args:
        num_classes: Classes of the networks.
        is_imagenet_input: Build them for 224-pixel images rather than 32-pixel ones, for which ResNet-50 starts with a
            3x3 convolution of stride 1 and no pooling.
        device: Where to build them.
    """

    def __init__(self, *, num_classes: int = 10, is_imagenet_input: bool = False, device: str = "meta") -> None:
        self.num_classes = num_classes
        self.is_imagenet_input = is_imagenet_input
        self.device = device

    def __len__(self) -> int:
        return len(PREDEFINED)

    def __getitem__(self, index: int) -> nn.Module:
        """Build a network.

        Raises:
            MissingDependencyError: It is ResNet-50, and torchvision is not installed.
        """
        with torch.device(self.device):
            if PREDEFINED[checked_index(index, len(self))] == "ViT":
                return DeepNetsNetwork(**self._vit_arguments())
            return self._resnet50()

    def graph(self, index: int) -> ComputationalGraph | None:
        """Return the graph of the ViT; that of ResNet-50 has to be traced."""
        if PREDEFINED[checked_index(index, len(self))] == "ViT":
            return wire(self._vit_arguments()).to_graph(VIRTUAL_EDGE_CUTOFF)
        return None

    def _vit_arguments(self) -> dict[str, Any]:
        return {
            "C": 128,
            "num_classes": self.num_classes,
            "genotype": VIT,
            "n_cells": 12,
            "preproc": False,
            "C_mult": 1,
            "norm": "bnorm",
            "is_imagenet_input": self.is_imagenet_input,
        }

    def _resnet50(self) -> nn.Module:
        network = _torchvision_resnet50()(weights=None, num_classes=self.num_classes)
        side = IMAGENET_SIDE
        if not self.is_imagenet_input:
            network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            network.maxpool = nn.Identity()
            side = CIFAR_SIDE
        network.expected_input_sz = side  # type: ignore[assignment]
        return network


def networks_of(
    split: str, place: str | os.PathLike[str] | None = None, **options: Any
) -> DescribedNetworks | PredefinedNetworks:
    """Return the networks of a split: those of a file, or without one such as this package generates.

    Args:
        split: Name of the split, or "predefined".
        place: HDF5 file or its folder; None for none.
        **options: `num_classes`, `is_imagenet_input`, `device`, and the others of `described.DescribedNetworks`.

    Raises:
        ArchitectureError: There is no such split.
        DatasetError: The file is missing or damaged.
    """
    if split == PREDEFINED_SPLIT:
        return PredefinedNetworks(**options)
    return GeneratedNetworks(split, **options) if place is None else StoredNetworks(place, split, **options)


def _torchvision_resnet50() -> Callable[..., nn.Module]:
    try:
        from torchvision.models import resnet50
    except ImportError as error:
        raise MissingDependencyError(
            "The predefined ResNet-50 is torchvision's, which is not installed: pip install torchvision."
        ) from error
    return resnet50

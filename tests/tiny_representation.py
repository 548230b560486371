"""A hyper-representation that is small and random, for tests of everything but its quality."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hf_paraminit.hyperrep.autoencoder import SequenceAutoEncoder
from hf_paraminit.hyperrep.config import SequenceConfig
from hf_paraminit.hyperrep.model import HyperRepresentation
from hf_paraminit.hyperrep.standardize import Standardization
from hf_paraminit.hyperrep.tokens import TokenLayout


def tiny_net(num_classes: int = 4, *, width: int = 6, batchnorm: bool = True) -> nn.Sequential:
    norm: list[nn.Module] = [nn.BatchNorm2d(width)] if batchnorm else []
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        *norm,
        nn.ReLU(),
        nn.Conv2d(width, width, 3, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, num_classes),
    )


def tiny_representation(num_anchors: int = 5, **settings: Any) -> HyperRepresentation:
    """A representation of `tiny_net()`; `settings` go to its config."""
    defaults = {"architecture": "tiny_net", "window": 10, "halo": 3}
    return representation_of(tiny_net, num_anchors, **{**defaults, **settings})


def representation_of(
    build: Callable[[], nn.Module], num_anchors: int = 2, token_dim: int = 16, **settings: Any
) -> HyperRepresentation:
    """A random representation of any network, with anchors that were never trained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layout = TokenLayout.from_module(build(), token_dim, norms=settings.get("norms", "skip"))
        autoencoder = SequenceAutoEncoder(
            SequenceConfig(token_dim=token_dim, model_dim=16, num_heads=2, num_layers=1, latent_dim=4, position_axes=4)
        )
        with torch.no_grad():
            for parameter in autoencoder.parameters():
                parameter.mul_(8)  # so that codes depend on the weights visibly
        networks = [build().state_dict() for _ in range(num_anchors)]
        standardization = Standardization.fit(layout, networks)
        accuracies = [row / num_anchors for row in range(num_anchors)]
        return HyperRepresentation.of_zoo(autoencoder, layout, standardization, networks, accuracies, **settings)

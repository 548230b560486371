"""Networks of model zoos by name: those of the published zoos, and any of timm."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
from torch import nn

from hf_paraminit.cli.timm_models import host_errors
from hf_paraminit.errors import ParamInitError
from hf_paraminit.hyperrep.zoo_nets import ZOO_NETS, ZooCNN
from hf_paraminit.initializers.suggest import did_you_mean


@dataclass(frozen=True, kw_only=True)
class ZooNetwork:
    """Builds the networks of a zoo; kept in the zoo's card, so that later commands can build them again.

    Attributes:
        name: Entry of `ZOO_NETS`, or any name that `timm.create_model` takes.
        settings: Arguments of its constructor.

    Raises:
        ParamInitError: There is no such network.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in ZOO_NETS and ":" not in self.name and not timm.is_model(self.name.partition(".")[0]):
            hint = did_you_mean(self.name, [*ZOO_NETS, *timm.list_models()])
            raise ParamInitError(
                f"There is no network {self.name!r}.{hint} The names are {', '.join(ZOO_NETS)} and those of timm."
            )

    def __call__(self, **more: Any) -> nn.Module:
        """Build one with its default initial weights.

        Args:
            **more: Further arguments, which a zoo's grid varies.

        Raises:
            ParamInitError: It cannot be built with these arguments.
        """
        settings = {**self.settings, **more}
        with host_errors(f"Could not build {self.name!r} with {settings}"):
            return ZooCNN(self.name, **settings) if self.name in ZOO_NETS else timm.create_model(self.name, **settings)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"name": self.name, "settings": dict(self.settings)}

    @classmethod
    def of_card(cls, card: Mapping[str, Any]) -> ZooNetwork:
        """The network of a zoo.

        Args:
            card: `Zoo.card`.

        Raises:
            ParamInitError: The zoo was not built by the command line, so its network is not known.
        """
        if "network" not in card:
            raise ParamInitError(
                f"The card of this zoo does not say how to build a {card.get('architecture')}; name the network."
            )
        return cls(**card["network"])


def network_of(arguments: argparse.Namespace, image_shape: tuple[int, int, int], num_classes: int) -> ZooNetwork:
    """The network of a command line, for images and classes that the data decide.

    Args:
        arguments: With `model` and `model_kwargs`.
        image_shape: (channels, height, width).
        num_classes: Outputs.
    """
    settings = {"num_classes": num_classes, "in_chans": image_shape[0], **arguments.model_kwargs}
    if arguments.model in ZOO_NETS:
        settings = {"img_size": image_shape[1], **settings}
    return ZooNetwork(name=arguments.model, settings=settings)

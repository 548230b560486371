"""Controls: another initializer's values with the structure taken out, so that what is left is their scale."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.initializers.wrapping import WrappingInitializer
from hf_paraminit.seeds import seeded_generator


def permuted(value: Tensor, generator: Generator) -> Tensor:
    """The same values in random order."""
    return value.flatten()[torch.randperm(value.numel(), generator=generator)].view(value.shape)


def matched(value: Tensor, generator: Generator) -> Tensor:
    """Normal noise of the same shape, mean and standard deviation."""
    noise = torch.randn(value.shape, generator=generator)
    return noise * value.std(correction=0) + value.mean()


CONTROLS: dict[str, Callable[[Tensor, Generator], Tensor]] = {"permuted": permuted, "matched": matched}


@register_initializer("control", summary="another initializer's scale without its structure: shuffled, or noise")
class Control(WrappingInitializer):
    """A learned method earns the word only if it beats both of its controls.

    `control:permuted` shuffles the values inside each tensor; `control:matched` replaces each tensor by independent
    normal noise of the same mean and standard deviation. The other initializer runs with the same seed.
    """

    variants = tuple(CONTROLS)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(WrappingInitializer.Config):
        """Settings, beside those of `WrappingInitializer`.

        Attributes:
            variant: "permuted" or "matched".
        """

        variant: str = "permuted"

        def validate(self) -> None:
            if self.of is None:
                raise ValueError("a control needs to know what it controls, as in init_kwargs={'of': 'ghn3'}")

    config: Config

    @property
    def identifier(self) -> str:
        return f"{super().identifier} of {self.original.identifier}"

    def change(self, target: nn.Module, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._without_structure(name, value) for name, value in values.items()}

    def _without_structure(self, name: str, value: Tensor) -> Tensor:
        generator = seeded_generator(self.config.seed, self.name, self.config.variant, name)
        return CONTROLS[self.config.variant](value.detach().to("cpu", torch.float32), generator)

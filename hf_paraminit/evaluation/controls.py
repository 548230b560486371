"""Starts whose effect is known beforehand: a comparison that does not see it is not to be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

FACTOR = 10.0


def do_nothing(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Leave everything as the model made it: the difference to the default is exactly zero."""
    return {}


def ten_times(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Ten times the default's weights, which must be found to harm; vectors (norms, biases) stay."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach() * FACTOR for name in names if parameters[name].ndim > 1}


CONTROLS: dict[str, Callable[[nn.Module, Sequence[str]], dict[str, Tensor]]] = {
    "nothing": do_nothing,
    "ten-times": ten_times,
}

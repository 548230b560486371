"""The model's own initialization, as a name: for rules that keep it, and for comparisons."""

from collections.abc import Sequence

from torch import Tensor, nn

from hf_paraminit.initializers.base import Initializer
from hf_paraminit.initializers.registry import register_initializer


@register_initializer("default", summary="what the model's own code draws; nothing is written")
class Default(Initializer):
    """Gives no values, so every parameter stays as the model made it."""

    reads_values = False

    def predict(self, target: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        return {}

    def reason_kept(self, target: nn.Module, name: str) -> str:
        return "the model's own value is wanted"

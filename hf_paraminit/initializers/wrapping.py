"""Initializers that take another one's values and change them."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hf_paraminit.initializers.base import Initializer, InitializerConfig
from hf_paraminit.initializers.registry import create


class WrappingInitializer(Initializer):
    """Runs the initializer that the setting `of` names, with the same seed, and changes what it predicts.

    Attributes:
        original: That initializer.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(InitializerConfig):
        """Settings.

        Attributes:
            of: the initializer to take the values from: what `init=` accepts, or a dict of `init` and its settings.
        """

        of: Any = None

        def validate(self) -> None:
            if self.of is None:
                raise ValueError("'of' must name the initializer whose values are changed, as in {'of': 'ghn3'}")

    config: Config

    def __init__(self, config: InitializerConfig | None = None, **settings: Any) -> None:
        super().__init__(config, **settings)
        self.original = create(self.config.of, seed=self.config.seed, device=self.config.device)
        self.reads_values = self.original.reads_values

    @abc.abstractmethod
    def change(self, target: nn.Module, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the values under the same names, in the same shapes."""

    def predict(self, target: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        values = self.original.predict_isolated(target, names)
        self.reads_values = self.original.reads_values
        return self.change(target, values)

    def host_arguments(self, definition: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return self.original.host_arguments(definition, arguments)

    def origin_of(self, name: str) -> str | None:
        return self.original.origin_of(name)

    def reason_kept(self, target: nn.Module, name: str) -> str:
        return self.original.reason_kept(target, name)

    def provenance(self) -> dict[str, Any]:
        return self.original.provenance()

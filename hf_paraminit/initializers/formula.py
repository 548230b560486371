"""What initializers that follow a formula have in common: seeds per tensor, a rule per value, and `strict`."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_paraminit.errors import PredictionError
from hf_paraminit.initializers.base import Initializer, InitializerConfig
from hf_paraminit.seeds import seeded_generator
from hf_paraminit.structure.model import ModelStructure


@dataclass(frozen=True, kw_only=True, slots=True)
class FormulaConfig(InitializerConfig):
    """Settings of every formula.

    Attributes:
        strict: whether a model without a single parameter that the formula applies to is an error.
        input_size: side in pixels of the sample that the model is traced with; None for what the model declares.
        example_inputs: what to trace with instead of a batch of images, as `hf_paraminit.trace` takes it.
    """

    strict: bool = False
    input_size: int | None = None
    example_inputs: Any = None


class Drawn(NamedTuple):
    """A value and the rule that it follows.

    Attributes:
        name: the parameter.
        rule: a few words for the report.
        value: float32 on the CPU, of the parameter's shape.
    """

    name: str
    rule: str
    value: Tensor


class FormulaInitializer(Initializer):
    """Computes each tensor from the model's structure.

    Every tensor has a stream of random numbers of its own, made from the seed and the tensor's name. So its value does
    not depend on which other tensors are offered, nor on the order in which they are drawn.
    """

    Config = FormulaConfig
    config: FormulaConfig
    reads_values = False

    def __init__(self, config: InitializerConfig | None = None, **settings: Any) -> None:
        super().__init__(config, **settings)
        self._rules: dict[str, str] = {}
        self._reasons: dict[str, str] = {}
        self._notes: list[str] = []
        self._has_read = False

    @abc.abstractmethod
    def draw(self, model: ModelStructure, names: Sequence[str]) -> Iterator[Drawn]:
        """Yield values for the parameters that the formula speaks of.

        Args:
            model: structure of the target.
            names: the offered parameters; values for others may be yielded as well, and are dropped.
        """

    def predict(self, target: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        self._rules, self._notes, self._has_read = {}, [], False
        model = ModelStructure(target, self.config.input_size, self.config.example_inputs)
        self._reasons = dict(model.kinds.reasons)
        offered = set(names)
        values = {}
        for name, rule, value in self.draw(model, names):
            if name in offered:
                values[name] = value
                self._rules[name] = f"{rule}, mean {value.mean():.3g}, std {value.std(correction=0):.3g}"
        self.reads_values = type(self).reads_values or self._has_read or model.used_values
        if not values:
            self._report_nothing(target)
        return {name: values[name] for name in names if name in values}

    def origin_of(self, name: str) -> str:
        return self._rules.get(name, "")

    def reason_kept(self, target: nn.Module, name: str) -> str:
        return self._reasons.get(name) or f"{self.name} does not speak of it"

    def provenance(self) -> dict[str, Any]:
        return {"notes": tuple(self._notes)}

    def note(self, sentence: str) -> None:
        """Add a sentence to the report."""
        self._notes.append(sentence)

    def skip(self, name: str, reason: str) -> None:
        """Say why a parameter that the formula might speak of is kept."""
        self._reasons[name] = reason

    def current(self, model: ModelStructure, name: str) -> Tensor:
        """A copy of the value that a parameter has now, float32 on the CPU."""
        self._has_read = True
        return model.module.get_parameter(name).detach().to("cpu", torch.float32, copy=True)

    def generator(self, *words: str) -> torch.Generator:
        """A stream of random numbers for what the words name, on the CPU."""
        return seeded_generator(self.config.seed, self.name, *words)

    def normal(self, shape: Sequence[int], *words: str) -> Tensor:
        """Standard normal draws of the stream that the words name."""
        return torch.randn(*shape, generator=self.generator(*words))

    def _report_nothing(self, target: nn.Module) -> None:
        message = f"{self.name} applies to none of the offered parameters of {type(target).__name__}"
        if self.config.strict:
            raise PredictionError(
                f"{message}; nothing was written. Leave strict=True out to keep the model's own values, or choose "
                "another initializer."
            )
        self.note(message)

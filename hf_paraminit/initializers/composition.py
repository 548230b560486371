"""Several initializers for one model: the first rule that matches a parameter's name decides who initializes it."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from hf_paraminit.errors import InitializerConfigError
from hf_paraminit.initializers.base import Initializer


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a composition.

    Attributes:
        pattern: shell-style pattern of parameter names; case counts.
        initializer: who initializes the parameters that match.
    """

    pattern: str
    initializer: Initializer

    def matches(self, name: str) -> bool:
        return fnmatch.fnmatchcase(name, self.pattern)


class Composition(Initializer):
    """Runs each rule's initializer on the parameters that no earlier rule matches.

    Each runs as if it were alone, with random streams of its own, so no rule's values depend on another's or on the
    order of execution. Parameters that no rule matches stay as the model made them.
    """

    name = "composition"

    def __init__(self, rules: Sequence[Rule], **settings: Any) -> None:
        """Bind rules to initializers.

        Args:
            rules: in order of precedence.
            **settings: `seed` and `device`; the initializers have settings of their own.

        Raises:
            InitializerConfigError: no rules, or other settings.
        """
        if not rules:
            raise InitializerConfigError("init={} has no rules; write init={'*': 'ghn3'}, or init=None for none.")
        super().__init__(None, **settings)
        self.rules = tuple(rules)
        self.reads_values = any(rule.initializer.reads_values for rule in rules)
        self._rule_of: dict[str, Rule] = {}
        self._idle: list[Rule] = []

    @property
    def identifier(self) -> str:
        return "{" + ", ".join(f"{rule.pattern}: {rule.initializer.identifier}" for rule in self.rules) + "}"

    def predict(self, target: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        first_match = {name: next((rule for rule in self.rules if rule.matches(name)), None) for name in names}
        self._rule_of = {name: rule for name, rule in first_match.items() if rule is not None}
        self._idle = [rule for rule in self.rules if all(rule is not used for used in self._rule_of.values())]
        values: dict[str, Tensor] = {}
        for rule, share in self._shares():
            values |= {
                name: value
                for name, value in rule.initializer.predict_isolated(target, share).items()
                if self._rule_of.get(name, rule) is rule
            }
        self.reads_values = any(rule.initializer.reads_values for rule, _ in self._shares())
        return values

    def host_arguments(self, definition: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Those of all rules; of two that disagree the earlier one counts."""
        added: dict[str, Any] = {}
        for rule in self.rules:
            added |= rule.initializer.host_arguments(definition, {**arguments, **added})
        return added

    def origin_of(self, name: str) -> str | None:
        rule = self._rule_of.get(name)
        if rule is None:
            return None
        origin = rule.initializer.origin_of(name)
        return f"by {rule.initializer.identifier} (rule {rule.pattern!r})" + (f": {origin}" if origin else "")

    def reason_kept(self, target: nn.Module, name: str) -> str:
        rule = self._rule_of.get(name)
        if rule is None:
            return "no rule matches it"
        return f"rule {rule.pattern!r}: {rule.initializer.reason_kept(target, name)}"

    def provenance(self) -> dict[str, Any]:
        """Notes and times of all parts; the predictor of the part that has one, or a note for each of several."""
        parts = [(rule, dict(rule.initializer.provenance())) for rule, _ in self._shares()]
        notes = [f"rule {rule.pattern!r} matched no parameter that an earlier rule left" for rule in self._idle]
        seconds: dict[str, float] = {}
        origins: list[dict[str, Any]] = []
        for rule, part in parts:
            label = f"{rule.pattern}: {rule.initializer.identifier}"
            notes += [f"{label}: {note}" for note in part.pop("notes", ())]
            seconds |= {f"{label} {phase}": time for phase, time in part.pop("seconds", {}).items()}
            if part.get("predictor") is not None:
                origins.append(part)
        if len(origins) > 1:
            notes += [f"predictor {part['predictor']}, sha256 {part.get('sha256')}" for part in origins]
        return {**(origins[0] if len(origins) == 1 else {}), "notes": tuple(notes), "seconds": seconds}

    def with_config(self, **changes: Any) -> Self:
        rules = [Rule(rule.pattern, rule.initializer.with_config(**changes)) for rule in self.rules]
        return type(self)(rules, **{"seed": self.config.seed, "device": self.config.device, **changes})

    def _shares(self) -> Iterator[tuple[Rule, list[str]]]:
        """The rules that match anything, with the names that fall to them, in the model's order."""
        for rule in self.rules:
            share = [name for name, chosen in self._rule_of.items() if chosen is rule]
            if share:
                yield rule, share

"""What one call of `initialize` did, as a plain record."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

EXAMPLES_PER_REASON = 3


@dataclass(frozen=True, kw_only=True)
class InitReport:
    """The fate of every parameter, and where the values came from.

    Attributes:
        initializer: name, or `name:variant`; None when nothing was asked for.
        predicted: parameter name -> shape and dtype that were written, with the rule where the initializer says it; or
            the name it is tied to.
        kept: parameter name -> why the initializer gave no value; the tensor is as the model made it.
        refused: name -> why a value was not, or may not be, written there.
        coverage_tensors: predicted share of the offered parameters, 0..1; tied tensors count once.
        coverage_elements: the same, by elements.
        predictor: where the predictor's weights came from (path or Hub id), if it has any.
        revision: commit or version of the predictor.
        sha256: hexadecimal digest of the predictor's weight file.
        seed: seed that the prediction used.
        seconds: wall time of each phase.
        skipped_reason: why nothing was attempted, for instance `"meta"`; None when something was.
        notes: anything else a reader should know, one sentence each.
    """

    initializer: str | None = None
    predicted: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    coverage_tensors: float = 0.0
    coverage_elements: float = 0.0
    predictor: str | None = None
    revision: str | None = None
    sha256: str | None = None
    seed: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    skipped_reason: str | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {**dataclasses.asdict(self), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**{**fields, "notes": tuple(fields.get("notes", ()))})

    @property
    def summary(self) -> str:
        """One line: how much was predicted, kept and refused."""
        if self.initializer is None:
            return "no initializer: nothing done"
        if self.skipped_reason is not None:
            return f"{self.initializer}: skipped ({self.skipped_reason})"
        return (
            f"{self.initializer}: {len(self.predicted)} predicted, {len(self.kept)} kept, {len(self.refused)} refused "
            f"({self.coverage_tensors:.1%} of the offered tensors, {self.coverage_elements:.1%} of their elements)"
        )

    def __str__(self) -> str:
        lines = [
            self.summary,
            *_grouped_by_reason("kept", self.kept),
            *_grouped_by_reason("refused", self.refused),
            *_labelled("predictor", self._origin()),
            *_labelled("seed", None if self.seed is None else str(self.seed)),
            *_labelled("seconds", ", ".join(f"{phase} {time:.3f}" for phase, time in self.seconds.items())),
            *(line for note in self.notes for line in _labelled("note", note)),
        ]
        return "\n".join(lines)

    def _origin(self) -> str | None:
        if self.predictor is None:
            return None
        revision = f"@{self.revision}" if self.revision else ""
        digest = f" (sha256 {self.sha256})" if self.sha256 else ""
        return f"{self.predictor}{revision}{digest}"


def _labelled(label: str, text: str | None) -> list[str]:
    return [f"  {label:<10} {text}"] if text else []


def _grouped_by_reason(label: str, reasons: Mapping[str, str]) -> list[str]:
    """One line per reason with its count and the first few names, most frequent reason first."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name, reason in reasons.items():
        groups[reason].append(name)
    lines = []
    for reason, names in sorted(groups.items(), key=lambda group: -len(group[1])):
        shown = ", ".join(names[:EXAMPLES_PER_REASON])
        more = f" and {len(names) - EXAMPLES_PER_REASON} more" if len(names) > EXAMPLES_PER_REASON else ""
        lines += _labelled(label, f"{len(names):>4}  {reason}: {shown}{more}")
    return lines

"""From scores to rewards: how much each score changed against the range of the recent ones (As-ViT's code)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hf_paraminit.asvit.errors import ScoreError

# Score -> sign of a good change, and whether larger is better.
SIGNS = {"exp": 1.0, "ntk": -1.0}
BUFFER_SIZE = 20
PUBLISHED_EPS = 1e-6  # added to the range; not negligible beside length distortions of 1e-4
CONSTRAINT = "constraint"


class ChangeReward:
    """Buffers of all values seen, one per score, and the reward of each new sample.

    The change of a value is its step from the previous one over the range of the last `buffer_size` values. The reward
    adds the changes, those of "ntk" negated. A failed sample takes the worst value so far; when a worse one comes, all
    failed ones take that, as published for searches on "ntk" alone.

    Args:
        types: Scores that count, of "ntk" and "exp".
        buffer_size: Values whose range scales a change.
        constraint_weight: Of the change of a constraint, which is subtracted.
        relative_eps: None for the published addition of 1e-6 to the range; else a share of the largest magnitude in it.
    """

    def __init__(
        self,
        types: Sequence[str],
        *,
        buffer_size: int = BUFFER_SIZE,
        constraint_weight: float = 0.0,
        relative_eps: float | None = None,
    ) -> None:
        check_types(types)
        if buffer_size < 1:
            raise ScoreError(f"buffer_size must be at least 1, found {buffer_size}.")
        self.types = tuple(types)
        self.buffer_size = buffer_size
        self.constraint_weight = constraint_weight
        self.relative_eps = relative_eps
        self.buffers: dict[str, list[float]] = {name: [] for name in (*self.types, CONSTRAINT)}
        self.changes: dict[str, list[float]] = {name: [] for name in (*self.types, CONSTRAINT)}
        self._failed: list[int] = []

    def update(self, values: Mapping[str, float], *, constraint: float = 0.0, is_failed: bool = False) -> float:
        """Take in one sample and return its reward, 0 for the first.

        Args:
            values: Score -> value; not looked at for a failed sample.
            constraint: Value of the constraint.
            is_failed: Whether the sample has no scores.
        """
        index = len(self.buffers[self.types[0]])
        if is_failed:
            self._failed.append(index)
        for name in self.types:
            value = self._worst(name) if is_failed else values[name]
            is_worse = not is_failed and self._is_worse(name, value)
            self.buffers[name].append(value)
            if is_worse:
                self._rewrite_failed(name, value, index)
            self.changes[name].append(self._change(name, index))
        self.buffers[CONSTRAINT].append(constraint)
        self.changes[CONSTRAINT].append(self._change(CONSTRAINT, index))
        reward = sum(SIGNS[name] * self.changes[name][-1] for name in self.types)
        return reward - self.constraint_weight * self.changes[CONSTRAINT][-1]

    def _worst(self, name: str) -> float:
        usable = [value for i, value in enumerate(self.buffers[name]) if i not in self._failed]
        return (min if SIGNS[name] > 0 else max)(usable, default=0.0)

    def _is_worse(self, name: str, value: float) -> bool:
        usable = [known for i, known in enumerate(self.buffers[name]) if i not in self._failed]
        return all(SIGNS[name] * value < SIGNS[name] * known for known in usable)

    def _rewrite_failed(self, name: str, value: float, index: int) -> None:
        """Give all failed samples a new worst value, and them and their successors the changes that follow from it."""
        for failed in self._failed:
            self.buffers[name][failed] = value
        for failed in self._failed:
            for changed in {failed, failed + 1} - {index}:
                self.changes[name][changed] = self._change(name, changed)

    def _change(self, name: str, index: int) -> float:
        if index == 0:
            return 0.0
        recent = self.buffers[name][max(0, index + 1 - self.buffer_size) : index + 1]
        span = max(recent) - min(recent)
        if self.relative_eps is None:
            scale = span + PUBLISHED_EPS
        else:
            scale = span + self.relative_eps * max(abs(value) for value in recent)
        return (self.buffers[name][index] - self.buffers[name][index - 1]) / scale if scale > 0 else 0.0


def check_types(types: Sequence[str]) -> None:
    """Refuse unknown, repeated or no scores.

    Raises:
        ScoreError: naming them.
    """
    known = ", ".join(map(repr, SIGNS))
    if not types or len(set(types)) != len(types) or not set(types) <= set(SIGNS):
        raise ScoreError(f"rewards must be one or both of {known}, found {', '.join(map(repr, types)) or 'none'}.")

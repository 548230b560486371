"""What can be read off a network's code: accuracy, epoch, generalisation gap (arXiv 2406.09997, section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_paraminit.errors import PredictionError
from hf_paraminit.hyperrep.tokens import TokenLayout

# Legend: N networks, F features.

PROPERTIES = ("test_accuracy", "epoch", "generalization_gap")
_QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
# Strengths of the penalty that are tried, as published: 1e3, 3e2, 1e2, ..., 3e-5, 1e-5.
_PENALTIES = tuple(factor * 10.0**power for power in range(3, -6, -1) for factor in (1.0, 0.3))[:17]


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Ridge regression in closed form.

    Attributes:
        weights: (F + 1,) float64, the last one for the constant.
        penalty: Strength that was chosen.
    """

    weights: Tensor
    penalty: float

    @classmethod
    def fit(
        cls,
        features: Tensor,
        targets: Tensor,
        validation: tuple[Tensor, Tensor] | None = None,
    ) -> LinearProbe:
        """Fit with the penalty that scores best on the validation networks, or without those on the training ones.

        The constant is penalised like the rest, as published. Networks whose target is NaN are left out.

        Args:
            features: (N, F).
            targets: (N,).
            validation: Further features and targets.

        Raises:
            PredictionError: No network has a target.
        """
        known = ~targets.isnan()
        if not known.any():
            raise PredictionError("A linear probe needs networks whose property is known; all targets are NaN.")
        design, wanted = _with_constant(features[known]), targets[known].double()
        gram, moment = design.T @ design, design.T @ wanted
        judged = validation if validation is not None else (features[known], wanted)
        best: LinearProbe | None = None
        best_score = -torch.inf
        for penalty in _PENALTIES:
            weights = torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=gram.dtype), moment)
            probe = cls(weights, penalty)
            score = probe.score(*judged)
            if best is None or score > best_score:
                best, best_score = probe, score
        assert best is not None
        return best

    def predict(self, features: Tensor) -> Tensor:
        """(N,) float64."""
        return _with_constant(features) @ self.weights

    def score(self, features: Tensor, targets: Tensor) -> float:
        """R2 over the networks whose target is known."""
        known = ~targets.isnan()
        wanted = targets[known].double()
        errors = (wanted - self.predict(features[known])).square().sum()
        spread = (wanted - wanted.mean()).square().sum()
        return float(1 - errors / spread) if spread > 0 else float("nan")


def weight_statistics(layout: TokenLayout, state_dict: Mapping[str, Tensor]) -> Tensor:
    """(N, F) what codes have to beat: of each layer's tensors mean, variance and the percentiles 1, 25, 50, 75, 99.

    Args:
        layout: Which tensors.
        state_dict: Stacked tensors (N, *shape).
    """
    columns = []
    for name in layout.names:
        values = state_dict[name].flatten(1).double()
        quantiles = values.quantile(torch.tensor(_QUANTILES, dtype=torch.float64), dim=1)
        columns += [values.mean(1), values.var(1, correction=0), *quantiles]
    return torch.stack(columns, 1)


def probe_scores(features: Mapping[str, Tensor], targets: Mapping[str, Mapping[str, Tensor]]) -> dict[str, float]:
    """R2 of each property on the test networks, of probes fitted on the training networks.

    Args:
        features: (N, F) by split: "train", "test", and "validation" if there is one.
        targets: (N,) by split, by property.
    """
    scores = {}
    for name, wanted in targets.items():
        validation = None
        if len(features.get("validation", ())) > 1:
            validation = (features["validation"], wanted["validation"])
        probe = LinearProbe.fit(features["train"], wanted["train"], validation)
        scores[name] = probe.score(features["test"], wanted["test"])
    return scores


def _with_constant(features: Tensor) -> Tensor:
    return torch.cat([features.double(), torch.ones(len(features), 1, dtype=torch.float64)], 1)

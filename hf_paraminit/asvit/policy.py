"""REINFORCE over independent categorical choices, with a bias-corrected moving average as baseline (As-ViT's code)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_paraminit.asvit.space import SearchSpace

LOGIT_STD = 1e-3
LEARNING_RATE = 0.08
BASELINE_MOMENTUM = 0.9
SEED = 8


@dataclass(frozen=True)
class PolicyStep:
    """What one update did.

    Attributes:
        log_prob: Of the sampled choices, before the update.
        entropy: Of the policy before the update, in nats.
        baseline: After it took in this reward.
        loss: -log_prob * (reward - baseline).
    """

    log_prob: float
    entropy: float
    baseline: float
    loss: float


class Policy:
    """One categorical distribution per field of the space, trained by REINFORCE with Adam.

    Args:
        space: What to choose from.
        seed: Of the first logits and all samples; a generator of its own, torch's random state is not touched.
        learning_rate: Of Adam.
        baseline_momentum: Of the moving average of rewards.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int = SEED,
        learning_rate: float = LEARNING_RATE,
        baseline_momentum: float = BASELINE_MOMENTUM,
    ) -> None:
        self.space = space
        self.baseline = MovingBaseline(baseline_momentum)
        self._generator = torch.Generator().manual_seed(seed)
        self.logits = [
            (LOGIT_STD * torch.randn(len(values), generator=self._generator)).requires_grad_()
            for values in space.choices
        ]
        self._optimizer = torch.optim.Adam(self.logits, lr=learning_rate)

    def sample(self) -> list[int]:
        """Draw one choice per field."""
        probabilities = [logits.detach().softmax(0) for logits in self.logits]
        draws = [torch.multinomial(p, 1, replacement=True, generator=self._generator) for p in probabilities]
        return [int(draw.item()) for draw in draws]

    def update(self, actions: Sequence[int], reward: float) -> PolicyStep:
        """Make choices more likely that were rewarded above the baseline, which takes in the reward first."""
        log_probs = [logits.log_softmax(0) for logits in self.logits]
        log_prob = torch.stack([values[action] for values, action in zip(log_probs, actions, strict=True)]).sum()
        entropy = self.entropy()
        baseline = self.baseline.update(reward)
        loss = -log_prob * (reward - baseline)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return PolicyStep(log_prob=log_prob.item(), entropy=entropy, baseline=baseline, loss=loss.item())

    def entropy(self) -> float:
        """Sum over the fields, in nats."""
        with torch.no_grad():
            return sum(_entropy(logits) for logits in self.logits)

    def best(self) -> list[int]:
        """The most likely choice of each field."""
        return [int(logits.argmax().item()) for logits in self.logits]


class MovingBaseline:
    """Exponential moving average of rewards, corrected for its start at zero.

    Args:
        momentum: Weight of the past.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self._numerator = self._denominator = 0.0

    def update(self, reward: float) -> float:
        """Take in a reward and return the average with it."""
        self._numerator = self.momentum * self._numerator + (1 - self.momentum) * reward
        self._denominator = self.momentum * self._denominator + (1 - self.momentum)
        return self._numerator / self._denominator


def _entropy(logits: Tensor) -> float:
    log_probs = logits.log_softmax(0)
    return -(log_probs.exp() * log_probs).sum().item()

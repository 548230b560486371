"""What the Aux-Net learns from: labels, a teacher's scores, or both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from hf_paraminit.errors import TrainingConfigError

Kind = Literal["none", "soft", "hard"]
Normalization = Literal["elements", "images"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation:
    """The loss of DeiT and LeTs: (1 - alpha) base + alpha distillation. The defaults are the published ones.

    With alpha 1 labels have no part in the loss; mixed images still have.

    Attributes:
        kind: "soft" is KL(teacher || student) of softmax(logits / tau), times tau squared; "hard" the cross-entropy
            with the class that the teacher prefers; "none" leaves the base loss alone.
        alpha: Share of the distillation.
        tau: Temperature.
        normalization: What the soft loss is divided by: "elements" is images times classes, as published; "images"
            alone makes it about as large as a cross-entropy, so that clipping and alpha below 1 mean what they say.
    """

    kind: Kind = "soft"
    alpha: float = 1.0
    tau: float = 1.0
    normalization: Normalization = "elements"

    def __post_init__(self) -> None:
        choices = {"kind": get_args(Kind), "normalization": get_args(Normalization)}
        faults = [
            f"{name}={getattr(self, name)!r}, expected one of {', '.join(known)}"
            for name, known in choices.items()
            if getattr(self, name) not in known
        ]
        if not 0 <= self.alpha <= 1:
            faults.append(f"alpha={self.alpha}, expected 0 to 1")
        if not 0 < self.tau < float("inf"):
            faults.append(f"tau={self.tau}, expected a positive number")
        if faults:
            raise TrainingConfigError(f"Distillation: {'; '.join(faults)}.")

    def loss(self, logits: Tensor, base: Tensor, teacher_logits: Tensor | None) -> Tensor:
        """Combine the losses.

        Args:
            logits: (B, K) of the student.
            base: Scalar loss on the labels.
            teacher_logits: (B, K), without gradient; None goes with `kind="none"`.
        """
        if self.kind == "none":
            return base
        assert teacher_logits is not None
        if self.kind == "hard":
            distilled = F.cross_entropy(logits, teacher_logits.argmax(1))
        else:
            student = F.log_softmax(logits / self.tau, dim=1)
            teacher = F.log_softmax(teacher_logits / self.tau, dim=1)
            summed = F.kl_div(student, teacher, reduction="sum", log_target=True) * self.tau**2
            distilled = summed / (logits.numel() if self.normalization == "elements" else len(logits))
        return (1 - self.alpha) * base + self.alpha * distilled

"""Published recipes for training one classifier, by name (ppuda, arXiv 2110.13100; GHN-3, arXiv 2303.04143)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hf_paraminit.training.augmentation import Augmentation
from hf_paraminit.training.classifier import LossName, OptimizerName
from hf_paraminit.training.images import HeldOut
from hf_paraminit.training.schedules import START_RATE, WARMUP_EPOCHS, ScheduleName


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierRecipe:
    """How a classifier is trained.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images per step and process.
        img_size: Side of the training images in pixels.
        optimizer: See `classifier.new_optimizer`.
        learning_rate: Peak rate.
        weight_decay: Of the optimiser.
        schedule: Of the rate, over `epochs`.
        warmup_epochs: Of the schedule "cosine-warmup".
        start_rate: Of the schedule "cosine-warmup".
        milestones: Of the schedule "mstep"; none for its own.
        gradient_clip: Largest global L2 norm of the gradients; 0 for no limit.
        loss: See `classifier.ClassifierTraining`.
        label_smoothing: Of the targets.
        drop_path: Drop-path rate that is reached with the end of the run; networks of DeepNets-1M only.
        auxiliary: Whether a second classifier learns too, with a weight of 0.4; likewise.
        augmentation: Of the training images.
        held_out: Of which images accuracy is measured, and at which size.
    """

    epochs: int = 50
    batch_size: int = 96
    img_size: int = 32
    optimizer: OptimizerName = "sgd"
    learning_rate: float = 0.025
    weight_decay: float = 3e-4
    schedule: ScheduleName = "cosine"
    warmup_epochs: int = WARMUP_EPOCHS
    start_rate: float = START_RATE
    milestones: tuple[int, ...] = ()
    gradient_clip: float = 5.0
    loss: LossName = "cross-entropy"
    label_smoothing: float = 0.0
    drop_path: float = 0.0
    auxiliary: bool = False
    augmentation: Augmentation = field(default_factory=Augmentation)
    held_out: HeldOut = field(default_factory=HeldOut)


CLASSIFIER_RECIPES: Mapping[str, ClassifierRecipe] = {
    # What ppuda trains networks of DeepNets-1M with (appendix C.1).
    "ppuda": ClassifierRecipe(),
    # The protocol of DARTS, with which ppuda trains the network that its search finds.
    "darts": ClassifierRecipe(epochs=600, drop_path=0.2, auxiliary=True, augmentation=Augmentation(cutout=16)),
    # GHN-3 on ImageNet, from scratch; from predicted weights the rate is 0.025.
    "imagenet": ClassifierRecipe(
        epochs=90,
        batch_size=128,
        img_size=224,
        learning_rate=0.1,
        weight_decay=1e-4,
        schedule="step",
        label_smoothing=0.1,
        augmentation=Augmentation(color_jitter=False),
    ),
    # GHN-3's variant of A3 ("ResNet strikes back", arXiv 2110.00476) on four GPUs, from scratch; from predicted weights
    # the rate is 6e-3, the decay 1e-3 and the schedule "cosine". Test images are larger than those of training.
    "a3": ClassifierRecipe(
        epochs=50,
        batch_size=512,
        img_size=160,
        optimizer="lamb",
        learning_rate=8e-3,
        weight_decay=1e-2,
        schedule="cosine-warmup",
        gradient_clip=0.0,
        loss="binary",
        augmentation=Augmentation(color_jitter=False, rand_augment="rand-m6", mixup=0.1, cutmix=1.0),
        held_out=HeldOut(size=224, crop=0.95),
    ),
}

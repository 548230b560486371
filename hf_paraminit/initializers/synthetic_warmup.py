"""A short training of the model itself on synthetic images: what any predictor has to be compared with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_paraminit.errors import PredictionError
from hf_paraminit.graphs.example_inputs import ExampleInputs
from hf_paraminit.graphs.meta_copy import copy_structure, tensor_on_cpu
from hf_paraminit.initializers.formula import Drawn, FormulaConfig, FormulaInitializer
from hf_paraminit.initializers.registry import create, register_initializer
from hf_paraminit.structure.model import ModelStructure
from hf_paraminit.training.synthetic.mixture import SyntheticImages, SyntheticSpec, normalize

WARMUP_STEPS, WEIGHT_DECAY, GRADIENT_CLIP = 10, 0.05, 1.0  # of the recipe that initializations are compared with
SIDES, DEFAULT_SIDE = (16, 128), 32  # that the generator renders; other sizes are interpolated


@register_initializer("synthetic-warmup", summary="the model itself, trained briefly on synthetic images")
class SyntheticWarmup(FormulaInitializer):
    """Trains a copy with AdamW to tell the classes of the synthetic mixture apart; its classifier is thrown away.

    It starts from the strongest formula for its family: `mimetic` where there is attention, else the model's own values
    with open residual branches. Takes minutes, in proportion to `steps`. Running statistics of batch norms stay the
    model's own; `recalibrate_batchnorm` fits them to the weights.
    """

    reads_values = True

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(FormulaConfig):
        """Settings.

        Attributes:
            steps: optimiser steps.
            batch_size: images per step.
            learning_rate: of AdamW, after a warm-up of 10 steps.
            preset: class counts, as `SyntheticSpec` takes them. The 256 classes of "base" need thousands of steps: with
                500 and 1,500 a small GC ViT had AUC 70.3 and 84.2 on digits, with those of "tiny" 90.1 and 89.1.
            start: what to start from, as `init=` takes it; None for the strongest formula.
        """

        steps: int = 500
        batch_size: int = 64
        learning_rate: float = 1e-3
        preset: str = "tiny"
        start: Any = None

        def validate(self) -> None:
            if self.steps < 1 or self.batch_size < 2 or not 0 < self.learning_rate < 1:
                raise ValueError("needs steps >= 1, batch_size >= 2 and a learning rate between 0 and 1")

    config: Config

    def draw(self, model: ModelStructure, names: Sequence[str]) -> Iterator[Drawn]:
        if isinstance(model.inputs, ExampleInputs):
            raise PredictionError("synthetic-warmup trains on images, which this model does not take.")
        self._has_read = True
        replica = copy_structure(model.module, tensor_on_cpu)
        start = self._start(model)
        create(start, seed=self.config.seed).apply(replica, distributed="off")
        self.note(f"started from {start}")
        images = self._images(model.inputs)
        network = self._with_new_head(replica, model.class_layers, images.num_classes)
        with torch.enable_grad():
            loss = self._train(network, images, model.inputs)
        self.note(f"cross-entropy on the last batch: {loss:.3g}")
        for name, parameter in replica.named_parameters():
            if name in model.classifier:
                self.skip(name, "the classifier is for other classes")
            else:
                yield Drawn(name, f"after {self.config.steps} steps", parameter.detach())

    def _start(self, model: ModelStructure) -> Any:
        if self.config.start is not None:
            return self.config.start
        return "mimetic" if model.attentions else {"*": {"init": "zero-residual", "norm_scale": 1.0}}

    def _images(self, size: tuple[int, int, int]) -> SyntheticImages:
        channels, height, width = size
        if channels not in (1, 3):
            raise PredictionError(
                f"synthetic-warmup makes images of 1 or 3 channels, but the model takes {channels}. Use another "
                "initializer."
            )
        side = height if height == width and SIDES[0] <= height <= SIDES[1] and height % 8 == 0 else DEFAULT_SIDE
        spec = SyntheticSpec(
            seed=self.config.seed % 2**32, size=side, preset=self.config.preset, grayscale=channels == 1
        )
        return SyntheticImages(spec)

    def _with_new_head(self, replica: nn.Module, class_layers: Sequence[str], num_classes: int) -> nn.Module:
        """Swap a linear classifier for one with other classes; put one behind models that have none or several."""
        owners = [replica.get_submodule(name.rpartition(".")[0]) for name in class_layers]
        if len(owners) == 1 and isinstance(owners[0], nn.Linear):
            new = nn.Linear(owners[0].in_features, num_classes)
            replica.set_submodule(class_layers[0].rpartition(".")[0], new)
            return replica
        return nn.Sequential(replica, _FirstTensor(), nn.Flatten(), nn.LazyLinear(num_classes))

    def _train(self, network: nn.Module, images: SyntheticImages, size: tuple[int, int, int]) -> float:
        network.train()
        network(self._batch(images, size, 0)[0])  # gives lazy layers their shape
        optimizer = torch.optim.AdamW(network.parameters(), self.config.learning_rate, weight_decay=WEIGHT_DECAY)
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARMUP_STEPS, total_iters=WARMUP_STEPS)
        value = math.nan
        for step in tqdm(range(self.config.steps), desc="synthetic warm-up", unit="step", leave=False):
            batch, labels = self._batch(images, size, step)
            loss = nn.functional.cross_entropy(first_tensor(network(batch)), labels)
            value = loss.item()
            if not math.isfinite(value):
                raise PredictionError(
                    f"synthetic-warmup diverged: the loss of step {step} is {value}. Choose a learning_rate below "
                    f"{self.config.learning_rate}."
                )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_CLIP)
            optimizer.step()
            warmup.step()
        return value

    def _batch(self, images: SyntheticImages, size: tuple[int, int, int], step: int) -> tuple[Tensor, Tensor]:
        pixels, labels = images.batch("train", step, self.config.batch_size)
        if pixels.shape[2:] != size[1:]:
            pixels = nn.functional.interpolate(pixels, size[1:], mode="bilinear", antialias=True)
        return normalize(pixels), labels


def first_tensor(output: Any) -> Tensor:
    """The scores in what a model returns: a tensor, or the first tensor of a tuple or of a Transformers output."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output
    return first_tensor(next(iter(values)))


class _FirstTensor(nn.Module):
    def forward(self, output: Any) -> Tensor:
        return first_tensor(output)

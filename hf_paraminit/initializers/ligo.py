"""LiGO: a smaller trained Transformer, grown by linear maps that are learned in about a hundred steps (2303.00980)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from tqdm.auto import tqdm

from hf_paraminit.errors import InitializerConfigError, PredictionError
from hf_paraminit.graphs.example_inputs import ExampleInputs
from hf_paraminit.graphs.meta_copy import copy_structure, tensor_on_cpu
from hf_paraminit.initializers.donor import check_donor, load_donor
from hf_paraminit.initializers.formula import Drawn, FormulaConfig, FormulaInitializer
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.initializers.synthetic_warmup import first_tensor
from hf_paraminit.lets.config import WidthScheme
from hf_paraminit.lets.ligo import GrowthScheme, LiGO, is_transformer
from hf_paraminit.structure.model import ModelStructure
from hf_paraminit.training.synthetic import SyntheticImages, SyntheticSpec, normalize

GRADIENT_CLIP = 1.0
SYNTHETIC_SIDE = 32


@register_initializer("ligo", summary="a smaller trained Transformer, grown by learned maps", paper="2303.00980")
class LiGOInitializer(FormulaInitializer):
    """Grows timm's VisionTransformer, and ViT, DeiT, BERT and RoBERTa of Transformers, from a smaller one.

    Only the maps are learned, through the large model, with AdamW; then its weights are made once. Heads should have
    the donor's size, so that growing adds whole heads. A classifier for other classes stays as the model made it.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(FormulaConfig):
        """Settings.

        Attributes:
            donor: a smaller trained model, its state dict, a safetensors file, a folder, or hf-hub:org/repo[@revision].
            steps: optimiser steps; 0 leaves the maps as they start.
            batches: what to learn from: a function from the step to (images, labels), or to a dict that a model of
                Transformers computes its loss from. None takes generated images and a new classifier.
            batch_size: of generated images.
            learning_rate: of AdamW; ours, as the paper gives none for this stage.
            width_init: how the map over neurons starts.
            depth_init: how the map over layers starts.
            train_donor: whether the donor's weights are trained, too.
        """

        donor: Any = None
        steps: int = 100
        batches: Any = None
        batch_size: int = 32
        learning_rate: float = 1e-3
        width_init: WidthScheme = "rand"
        depth_init: GrowthScheme = "stackbert_noisy"
        train_donor: bool = False

        def validate(self) -> None:
            check_donor(self.donor)
            if self.steps < 0 or self.batch_size < 2 or not 0 < self.learning_rate < 1:
                raise ValueError("needs steps >= 0, batch_size >= 2 and a learning rate between 0 and 1")
            if self.batches is not None and not callable(self.batches):
                raise ValueError(f"batches must be a function from a step to a batch, found {self.batches!r}")

    config: Config

    def draw(self, model: ModelStructure, names: Sequence[str]) -> Iterator[Drawn]:
        shapes = {name: tuple(parameter.shape) for name, parameter in model.module.named_parameters()}
        config, donor = self.config, load_donor(self.config.donor)
        if not (is_transformer(shapes) and is_transformer(donor)):
            for name in shapes:
                self.skip(name, "donor and model are no Transformers that ligo knows")
            return
        growth = LiGO(
            donor,
            shapes,
            width_init=config.width_init,
            depth_init=config.depth_init,
            train_small=config.train_donor,
        )
        for name, reason in growth.reasons.items():
            self.skip(name, reason)
        if config.steps:
            with torch.enable_grad():
                self._learn(growth, model)
        for name, value in growth.materialize().items():
            yield Drawn(name, f"grown by {config.steps} steps", value.detach())

    def _learn(self, growth: LiGO, model: ModelStructure) -> None:
        self._has_read = True
        replica = copy_structure(model.module, tensor_on_cpu).requires_grad_(False).train()
        grown = {plan.name for plan in growth.plans}
        batch_at, head = self.config.batches, ""
        if batch_at is None:
            batch_at, head = self._generated(model, replica)
            grown = {name for name in grown if not name.startswith(f"{head}.")}
        trained = [p for p in (*growth.parameters(), *replica.parameters()) if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, self.config.learning_rate)
        for step in tqdm(range(self.config.steps), desc="ligo", unit="step", leave=False):
            values = {name: value for name, value in growth.materialize().items() if name in grown}
            loss = _loss(replica, values, batch_at(step))
            if not math.isfinite(loss.item()):
                raise PredictionError(
                    f"ligo diverged: the loss of step {step} is {loss.item()}. Choose a learning_rate below "
                    f"{self.config.learning_rate}."
                )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, GRADIENT_CLIP)
            optimizer.step()
        self.note(f"loss on the last batch: {loss.item():.3g}")

    def _generated(
        self, model: ModelStructure, replica: nn.Module
    ) -> tuple[Callable[[int], tuple[Tensor, Tensor]], str]:
        """Generated images, and the classifier of the replica swapped for one of their classes."""
        heads = [name.rpartition(".")[0] for name in model.class_layers]
        if isinstance(model.inputs, ExampleInputs) or len(heads) != 1:
            raise InitializerConfigError(
                "ligo learns from generated images only where a model has images and one classifier; pass "
                "init_kwargs={'batches': function from a step to a batch}, or 'steps': 0."
            )
        channels, *side = model.inputs
        spec = SyntheticSpec(seed=self.config.seed % 2**32, size=SYNTHETIC_SIDE, grayscale=channels == 1)
        images = SyntheticImages(spec)
        owner = replica.get_submodule(heads[0])
        assert isinstance(owner, nn.Linear)
        replica.set_submodule(heads[0], nn.Linear(owner.in_features, images.num_classes))

        def batch_at(step: int) -> tuple[Tensor, Tensor]:
            pixels, labels = images.batch("train", step, self.config.batch_size)
            if tuple(pixels.shape[2:]) != tuple(side):
                pixels = F.interpolate(pixels, tuple(side), mode="bilinear", antialias=True)
            return normalize(pixels), labels

        return batch_at, heads[0]


def _loss(module: nn.Module, values: Mapping[str, Tensor], batch: Any) -> Tensor:
    """Run the model with the grown weights: cross-entropy on labels, or the loss that it computes itself."""
    if isinstance(batch, Mapping):
        return functional_call(module, dict(values), (), dict(batch))["loss"]
    images, labels = batch
    return F.cross_entropy(first_tensor(functional_call(module, dict(values), (images,))), labels)

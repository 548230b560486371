"""TLEG: vision transformers of any depth and one width, layers being a linear function of depth (arXiv 2312.05614)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from hf_paraminit.errors import PredictionError, PredictorNotFoundError
from hf_paraminit.initializers.base import Initializer, InitializerConfig
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.lets.slots import VisionTransformer, find_vision_transformer
from hf_paraminit.lets.tleg import TLEG, TLEGConfig


@register_initializer(
    "tleg", summary="vision transformers of any depth, layers being a line through two blocks", paper="2312.05614"
)
class TLEGInitializer(Initializer):
    """Generates the weights of timm's VisionTransformer and of ViT and DeiT of Transformers, of the learngene's width.

    It computes exactly what was trained where the patches are normed and then averaged, with epsilon 1e-5
    (`class_token=False, global_pool="avg", fc_norm=False`). The published code loads the last norm after the average,
    which is another function; that works here too. Tokens that the learngene lacks, and a classifier for another number
    of classes, stay as the model made them.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(InitializerConfig):
        """Settings.

        Attributes:
            source: a TLEG learngene: a folder, "local-dir:PATH", "hf-hub:org/repo[@revision]", or a file of the
                published code.
            revision: branch, tag or commit on the Hub.
        """

        source: str | None = None
        revision: str | None = None

    config: Config
    reads_values = False

    def __init__(
        self, config: InitializerConfig | None = None, *, predictor: TLEG | None = None, **settings: Any
    ) -> None:
        """Use a loaded learngene instead of the source when `predictor` is given."""
        super().__init__(config, **settings)
        self._given = predictor
        self._reasons: dict[str, str] = {}
        self._provenance: dict[str, Any] = {}

    @property
    def predictor(self) -> TLEG:
        """The learngene.

        Raises:
            PredictorNotFoundError: No source was named, or there is nothing.
        """
        if self._given is not None:
            return self._given
        if self.config.source is None:
            raise PredictorNotFoundError(
                "init='tleg' needs a TLEG learngene, and none ships with this version. Name one with "
                "init_kwargs={'source': PATH}, which also reads a file of the published code; init='learngene-LeTs' "
                "ships with the package."
            )
        network = TLEG.from_pretrained(self.config.source, revision=self.config.revision)
        return network.requires_grad_(False)

    def with_config(self, **changes: Any) -> Self:
        return type(self)(self.config, predictor=self._given, **changes)

    def predict(self, target: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        vit = find_vision_transformer(target)
        learngene = self.predictor
        _require_fit(learngene.config, vit)
        slots = learngene.materialize(vit.depth)
        self._reasons = self._leave_out(slots, learngene.config, vit)
        self._provenance = {**learngene.provenance, "notes": (f"layers at 0 to {vit.depth - 1} of {vit.depth}",)}
        values = {
            name: value.detach()
            for name, value in vit.to_state(slots).items()
            if value.shape == target.get_parameter(name).shape
        }
        return {name: values[name] for name in names if name in values}

    def provenance(self) -> dict[str, Any]:
        return self._provenance

    def reason_kept(self, target: nn.Module, name: str) -> str:
        return self._reasons.get(name, "the learngene has nothing for it")

    def _leave_out(self, slots: dict[str, Tensor], config: TLEGConfig, vit: VisionTransformer) -> dict[str, str]:
        """Take out what does not fit; returns the reasons by parameter."""
        found = {}
        if vit.num_classes != config.num_classes:
            found["head"] = f"the learngene's head has {config.num_classes} classes, the model's {vit.num_classes}"
        if vit.num_prefix_rows or vit.grid_size != (config.img_size // config.patch_size,) * 2:
            found["pos_embed"] = "the learngene's position table is for another set of tokens"
        for slot in [slot for slot in slots if slot.partition(".")[0] in found]:
            del slots[slot]
        return {
            name: found[places[0].partition(".")[0]]
            for name, places in vit.places.items()
            if places[0].partition(".")[0] in found
        }


def _require_fit(config: TLEGConfig, vit: VisionTransformer) -> None:
    """Raise `PredictionError` for a model that no net of this learngene resembles."""
    expected = {
        "width": config.embed_dim,
        "mlp_dim": int(config.embed_dim * config.mlp_ratio),
        "in_chans": config.in_chans,
        "patch_size": (config.patch_size,) * 2,
    }
    faults = [f"{name} {getattr(vit, name)}, expected {value}" for name, value in expected.items()
              if getattr(vit, name) != value]  # fmt: skip
    if faults:
        raise PredictionError(
            f"The TLEG learngene cannot make this model, so nothing was written: {'; '.join(faults)}. TLEG varies the "
            "depth alone; init='learngene-LeTs' varies the width too."
        )

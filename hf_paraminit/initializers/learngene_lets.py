"""LeTs: vision transformers of any width and depth from one trained learngene (NeurIPS 2024)."""

from __future__ import annotations

import copy
import dataclasses
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from hf_paraminit.errors import InitializerConfigError, PredictionError, PredictorNotFoundError
from hf_paraminit.initializers.base import Initializer, InitializerConfig
from hf_paraminit.initializers.graph_hypernetwork import source_stamp
from hf_paraminit.initializers.placement import prediction_device
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.lets.config import LeTsConfig
from hf_paraminit.lets.depth import LayerSource
from hf_paraminit.lets.des_net import DesNetOptions, check_target, departures, des_net_values, num_class_rows
from hf_paraminit.lets.generator import LeTsGenerator
from hf_paraminit.lets.slots import VisionTransformer, find_vision_transformer
from hf_paraminit.lets.start import PUBLISHED_STD
from hf_paraminit.lets.width import Select
from hf_paraminit.seeds import seeded_generator

BUILTIN_FOLDER = Path(__file__).parent.parent / "lets" / "builtin" / "learngene-LeTs"
# Where timm defines plain vision transformers; elsewhere embed_dim and num_heads may mean something else.
PLAIN_DEFINITIONS = ("timm.models.vision_transformer", "timm.models.deit")


@register_initializer(
    "learngene-LeTs",
    summary="vision transformers of any width and depth from one trained learngene",
    aliases=("lets", "learngene"),
)
class LearngeneLeTs(Initializer):
    """Generates the weights of timm's VisionTransformer and of ViT and DeiT of Transformers.

    Whatever the learngene knows nothing of stays as the model made it: tokens before the patches and their rows of the
    position table, poolers, and a classifier for another number of classes. LayerScale becomes 1. Where timm is given
    `embed_dim` but no `num_heads`, the model gets as many heads of the learngene's size as fit, and its report says so.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(InitializerConfig):
        """Settings.

        Attributes:
            source: a learngene: a folder, "local-dir:PATH", "hf-hub:org/repo[@revision]", or a file that the published
                code wrote.
            filename: a file of the published code inside the Hub repository that `source` names.
            revision: branch, tag or commit on the Hub.
            select: which added neurons a model narrower than the Aux-Net takes.
            blocks: depth block of each layer, instead of the rule.
            mapping_layer: the published pair of lists instead: a layer of the Aux-Net for each layer, whose pair of
                learngene layers is mixed, and
            mapping_layer_coeff: the layer of the Aux-Net whose coefficients mix them.
            extend: "cycle" lets a model wider than the Aux-Net have added neurons twice.
            shrink: "prefix" lets a model narrower than the learngene have its first neurons.
            heads: "mix" allows heads of another size than the learngene's.
            head: the classifier is generated when the number of classes agrees ("auto"), always ("generate"), never
                ("keep"), or from the learngene's first classes ("truncate").
        """

        source: str | None = None
        filename: str | None = None
        revision: str | None = None
        select: Select = "continuous"
        blocks: Any = None
        mapping_layer: Any = None
        mapping_layer_coeff: Any = None
        extend: Literal["refuse", "cycle"] = "refuse"
        shrink: Literal["refuse", "prefix"] = "refuse"
        heads: Literal["refuse", "mix"] = "refuse"
        head: Literal["auto", "generate", "keep", "truncate"] = "auto"

        def validate(self) -> None:
            for name in ("blocks", "mapping_layer", "mapping_layer_coeff"):
                value = getattr(self, name)
                is_list = isinstance(value, (list, tuple)) and all(type(entry) is int for entry in value)
                if value is not None and not is_list:
                    raise InitializerConfigError(f"{name} must be a list of integers, found {value!r}.")
            _ = self.options

        @property
        def options(self) -> DesNetOptions:
            """The settings that say how a target is made."""
            names = [field.name for field in dataclasses.fields(DesNetOptions)]
            return DesNetOptions(**{name: getattr(self, name) for name in names})

    config: Config
    reads_values = False

    def __init__(
        self, config: InitializerConfig | None = None, *, predictor: LeTsGenerator | None = None, **settings: Any
    ) -> None:
        """Use a loaded learngene instead of the source when `predictor` is given."""
        super().__init__(config, **settings)
        self._given = predictor
        self._rules: dict[str, str] = {}
        self._reasons: dict[str, str] = {}
        self._provenance: dict[str, Any] = {}

    @property
    def predictor(self) -> LeTsGenerator:
        """The learngene, for a model on the CPU; see `predictor_for`."""
        return self._given if self._given is not None else self.predictor_for(torch.device("cpu"))

    def predictor_for(self, own: torch.device) -> LeTsGenerator:
        """The learngene where it generates a model that is on the device `own`.

        Loaded at first use, then kept until `hf_paraminit.clear_cache()`. One that was given as an object never moves:
        where it would have to, a copy does the work.

        Raises:
            PredictorNotFoundError: No source was named, or there is nothing.
            CheckpointError: Damaged or unsafe files.
        """
        device = prediction_device(self.config.device, own)
        if self._given is not None:
            return self._given if self._given.device == device else copy.deepcopy(self._given).to(device)
        source = self.config.source
        if source is None and BUILTIN_FOLDER.is_dir():
            source = str(BUILTIN_FOLDER)
        if source is None:
            raise PredictorNotFoundError(
                "init='learngene-LeTs' needs a trained learngene, and none ships with this version. Name one as "
                "init='local-dir:PATH' or init='hf-hub:org/repo', or with init_kwargs={'source': ...}, which also "
                "reads a file of the published code; `paraminit train learngene-LeTs` trains one."
            )
        return load_lets(source, self.config.filename, self.config.revision, stamp=source_stamp(source), device=device)

    def load(self) -> None:
        """Load the learngene now, so that faults show before any model is built."""
        _ = self.predictor

    def with_config(self, **changes: Any) -> Self:
        return type(self)(self.config, predictor=self._given, **changes)

    def host_arguments(self, definition: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """As many heads as fit a width, where a width was given without them: all nets have heads of one size.

        Raises:
            PredictionError: No whole number of heads fits.
        """
        width = arguments.get("embed_dim")
        is_plain = definition in PLAIN_DEFINITIONS and not arguments.get("pretrained")
        if not is_plain or not isinstance(width, int) or "num_heads" in arguments:
            return {}
        head_dim = self.predictor.config.head_dim
        if width < 1 or width % head_dim:
            raise PredictionError(
                f"{self.name} cannot make a model of embed_dim={width}, so it was not built: the learngene's heads "
                f"have {head_dim} channels each; expected a multiple of that."
            )
        return {"num_heads": width // head_dim}

    def predict(self, target: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        started = time.perf_counter()
        self._rules, self._reasons, self._provenance = {}, {}, {}
        vit = find_vision_transformer(target)
        if not any(slot.startswith("blocks.") for name in names for slot in vit.places.get(name, ())):
            # As after loading a checkpoint for another number of classes.
            self._reasons = dict.fromkeys(
                names, "a learngene's values belong to blocks that it made, and none is offered"
            )
            return {}
        generator = self.predictor_for(next(target.parameters()).device)
        loaded = time.perf_counter()
        sources = check_target(generator.config, vit, self.config.options)
        made = des_net_values(generator, vit, self.config.options, self._prefix_rows(target, vit))
        offered = [name for name in names if name in made]
        self._rules = {name: made[name].rule for name in offered}
        self._reasons = self._kept(generator.config, vit)
        self._provenance = {
            **generator.provenance,
            "notes": self._notes(generator.config, vit, sources),
            "seconds": {"load": loaded - started, "materialize": time.perf_counter() - loaded},
        }
        return {name: made[name].value for name in offered}

    def provenance(self) -> dict[str, Any]:
        return self._provenance

    def origin_of(self, name: str) -> str | None:
        return self._rules.get(name)

    def reason_kept(self, target: nn.Module, name: str) -> str:
        return self._reasons.get(name, "the learngene has nothing for it")

    def _prefix_rows(self, target: nn.Module, vit: VisionTransformer) -> Tensor | None:
        """The rows of the position table that belong to tokens, which the model keeps.

        While a host builds the model fast, a large table has no values yet; then they are drawn as both hosts do.
        """
        name = vit.name_of("pos_embed")
        if name is None or not vit.num_prefix_rows:
            return None
        table = target.get_parameter(name).detach()
        if 0 in table.stride():  # which no table with memory of its own has
            draw = seeded_generator(self.config.seed, self.name, name)
            rows = torch.empty(vit.num_prefix_rows, vit.width)
            return nn.init.trunc_normal_(rows, std=PUBLISHED_STD, generator=draw)
        return table[0, : vit.num_prefix_rows].float()

    def _kept(self, config: LeTsConfig, vit: VisionTransformer) -> dict[str, str]:
        reasons = {}
        if not num_class_rows(config, vit, self.config.head):
            reason = f"the learngene's head has {config.num_classes} classes, the model's {vit.num_classes}"
            reason = "head='keep' leaves the model's own" if self.config.head == "keep" else reason
            reasons = {name: reason for name, slots in vit.places.items() if slots[0].startswith("head.")}
        if not config.class_token and (token := vit.name_of("cls_token")):
            reasons[token] = "the learngene has no class token"
        return reasons

    def _notes(self, config: LeTsConfig, vit: VisionTransformer, sources: Sequence[LayerSource]) -> tuple[str, ...]:
        """How the model was made; warns where it will not compute what the learngene was trained for."""
        found = departures(config, vit)
        if found:
            warnings.warn(
                f"{self.name}: the model is not exactly a generated one: {'; '.join(found)}.",
                stacklevel=_callers_level(),
            )
        blocks = " ".join(str(source.block) for source in sources)
        return (f"{self.config.select} selection to width {vit.width}; depth blocks of the layers: {blocks}", *found)


def _callers_level() -> int:
    """How many frames up, seen from the caller of this, the package was entered: there a warning belongs."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("hf_paraminit."):
        frame, level = frame.f_back, level + 1
    return level


@lru_cache(maxsize=4)
def load_lets(
    source: str, filename: str | None, revision: str | None, *, stamp: object, device: torch.device
) -> LeTsGenerator:
    """Load a learngene once per process and device; `clear_cache` forgets it, and so does another `stamp`."""
    return LeTsGenerator.from_pretrained(source, filename=filename, revision=revision).requires_grad_(False).to(device)

"""What the four graph hypernetworks have in common as initializers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from hf_paraminit.errors import PredictorNotFoundError
from hf_paraminit.ghn.model import GHN
from hf_paraminit.initializers.base import Initializer, InitializerConfig

BUILTIN_FOLDER = Path(__file__).parent.parent / "ghn" / "builtin"
HUB_REPOSITORY = "SamsungSAILMontreal/ghn3"  # the published GHN-3 checkpoints


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphHypernetworkConfig(InitializerConfig):
    """Settings of a graph hypernetwork.

    Attributes:
        variant: Which of the known predictors, see `variants`; the first one when empty.
        source: Another predictor instead: a folder, a checkpoint file of the published code, "local-dir:PATH",
            "hf-hub:org/repo[@revision]".
        filename: A checkpoint file of the published code inside the Hub repository that `source` names.
        revision: Branch, tag or commit on the Hub.
        predict_class_layers: Whether to predict the final classifier too.
        attention: Graph of attention layers, as `hf_paraminit.trace` takes it.
        input_size: Side in pixels of the sample that the model is traced with; None for what the model declares.
        mode: Kind of graph, as `hf_paraminit.trace` takes it: "compat" is what predictors were trained on, "native"
            covers every architecture, "auto" takes the first where it does the model justice.
    """

    variant: str = ""
    source: str | None = None
    filename: str | None = None
    revision: str | None = None
    predict_class_layers: bool = True
    attention: Literal["explicit", "fused"] = "explicit"
    input_size: int | None = None
    mode: Literal["auto", "compat", "native"] = "auto"


@dataclass(frozen=True, slots=True)
class PredictorFile:
    """Where a variant is found: a folder of the package, or a file in a Hub repository."""

    folder: Path | None = None
    repository: str | None = None
    filename: str | None = None


class GraphHypernetworkInitializer(Initializer):
    """Predicts the parameters that have a node in the model's computational graph.

    Subclasses name their `variants`, the default first, and where each is found (`files`).
    """

    Config = GraphHypernetworkConfig
    config: GraphHypernetworkConfig
    files: ClassVar[dict[str, PredictorFile]] = {}

    def __init__(
        self, config: InitializerConfig | None = None, *, predictor: GHN | None = None, **settings: Any
    ) -> None:
        """Use a loaded network instead of the variant when `predictor` is given."""
        if config is None and self.variants:
            settings = {"variant": self.variants[0], **settings}
        super().__init__(config, **settings)
        self._given = predictor
        self._provenance: dict[str, Any] = {}
        self._kept_reasons: dict[str, str] = {}

    @property
    def identifier(self) -> str:
        """The name, with the variant when that decides which network runs."""
        return self.name if self._given is not None or self.config.source is not None else super().identifier

    @property
    def predictor(self) -> GHN:
        """The hypernetwork; loaded at first use, then kept until `hf_paraminit.clear_cache()`."""
        if self._given is not None:
            return self._given
        if self.config.source is not None:
            return load_ghn(self.config.source, self.config.filename, self.config.revision)
        file = self.files.get(self.config.variant)
        if file is None:
            raise PredictorNotFoundError(
                f"init={self.identifier!r}: this predictor was only published inside its paper's source code. Read a "
                "copy with hf_paraminit.load_predictor(PATH), or pass init_kwargs={'source': PATH}; init='ghn3' ships "
                "with the package."
            )
        if file.folder is not None:
            return load_ghn(str(file.folder), None, None)
        return load_ghn(f"hf-hub:{file.repository}", file.filename, self.config.revision)

    def load(self) -> None:
        """Load the hypernetwork now, so that faults show before any model is built."""
        _ = self.predictor

    def with_config(self, **changes: Any) -> Self:
        return type(self)(self.config, predictor=self._given, **changes)

    def predict(self, target: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        started = time.perf_counter()
        ghn = self._placed(self.predictor, target)
        loaded = time.perf_counter()
        graph = ghn.trace(
            target, input_size=self.config.input_size, attention=self.config.attention, mode=self.config.mode
        )
        traced = time.perf_counter()
        values = ghn.predict(
            graph,
            {name: tuple(parameter.shape) for name, parameter in target.named_parameters()},
            names=set(names),
            predict_class_layers=self.config.predict_class_layers,
            generator=torch.Generator().manual_seed(self.config.seed),
        )
        self._kept_reasons = dict(graph.kept_reasons)
        self._provenance = {
            **ghn.provenance,
            "notes": (f"graph: {graph.mode} mode, {graph.attention} attention, {len(graph)} nodes",),
            "seconds": {"load": loaded - started, "trace": traced - loaded, "decode": time.perf_counter() - traced},
        }
        return values

    def provenance(self) -> dict[str, Any]:
        return self._provenance

    def reason_kept(self, target: nn.Module, name: str) -> str:
        return self._kept_reasons.get(name, "no node in the computational graph stands for it")

    def _placed(self, ghn: GHN, target: nn.Module) -> GHN:
        """Put the network where the prediction runs: the configured device, else the model's."""
        device = torch.device(self.config.device) if self.config.device else next(target.parameters()).device
        if device.type == "meta":  # moving there would lose the network's weights
            return ghn
        return ghn if ghn.device == device else ghn.to(device)


@lru_cache(maxsize=4)
def load_ghn(source: str, filename: str | None, revision: str | None) -> GHN:
    """Load a hypernetwork once per process; `clear_cache` forgets it."""
    return GHN.from_pretrained(source, filename=filename, revision=revision).requires_grad_(False)

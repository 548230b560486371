"""What the four graph hypernetworks have in common as initializers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hf_paraminit.errors import InitializerConfigError, PredictorNotFoundError
from hf_paraminit.ghn.model import GHN
from hf_paraminit.graphs.graph import ComputationalGraph
from hf_paraminit.initializers.attention_pairs import oppose_values
from hf_paraminit.initializers.base import Initializer, InitializerConfig
from hf_paraminit.initializers.placement import prediction_device
from hf_paraminit.structure.attention import Attention
from hf_paraminit.structure.model import ModelStructure

BUILTIN_FOLDER = Path(__file__).parent.parent / "ghn" / "builtin"
# Attention layers of the models that a graph stands for; a model that was met before has the same graph object.
_ATTENTIONS: WeakKeyDictionary[ComputationalGraph, tuple[Attention, ...]] = WeakKeyDictionary()
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
        decoder_dtype: Type of the decoder of kernels, nearly all of a predictor's memory. "bfloat16" halves it; values
            then carry three significant digits. The published networks were trained and evaluated in float32.
        device_map: "auto" spreads a predictor that is too large for one device over the accelerators, the CPU and the
            disk, as Accelerate does; `device="auto"` means the same.
        example_inputs: What to trace the model with when it takes something other than one batch of images: a tensor, a
            tuple of arguments, or a dict of keyword arguments, as `hf_paraminit.trace` takes it. No JSON value.
    """

    variant: str = ""
    source: str | None = None
    filename: str | None = None
    revision: str | None = None
    predict_class_layers: bool = True
    attention: Literal["explicit", "fused"] = "explicit"
    input_size: int | None = None
    mode: Literal["auto", "compat", "native"] = "auto"
    decoder_dtype: Literal["float32", "bfloat16"] = "float32"
    device_map: Literal["auto"] | None = None
    example_inputs: Any = field(default=None, compare=False, repr=False)

    def validate(self) -> None:
        if self.device_map is not None and (self.device is not None or self.decoder_dtype != "float32"):
            raise InitializerConfigError(
                f"device_map={self.device_map!r} (or device='auto') spreads the predictor as it is stored; it goes "
                f"neither with another device nor with decoder_dtype, found {self.device!r} and {self.decoder_dtype!r}."
            )


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
    reads_values = False

    def __init__(
        self, config: InitializerConfig | None = None, *, predictor: GHN | None = None, **settings: Any
    ) -> None:
        """Use a loaded network instead of the variant when `predictor` is given."""
        if config is None and self.variants:
            settings = {"variant": self.variants[0], **settings}
        super().__init__(config, **spell_out_auto(settings))
        if predictor is not None and self.config.device_map is not None:
            raise InitializerConfigError(
                f"{self.name} cannot spread a predictor that was given as an object, which is the caller's to change. "
                "Name the place that it was read from, or call its method spread() yourself."
            )
        self._given = predictor
        self._provenance: dict[str, Any] = {}
        self._kept_reasons: dict[str, str] = {}

    @property
    def identifier(self) -> str:
        """The name, with the variant when that decides which network runs."""
        return self.name if self._given is not None or self.config.source is not None else super().identifier

    @property
    def predictor(self) -> GHN:
        """The hypernetwork, for a model on the CPU; see `predictor_for`."""
        return self._given if self._given is not None else self.predictor_for(torch.device("cpu"))

    def predictor_for(self, own: torch.device) -> GHN:
        """The hypernetwork where it predicts a model that is on the device `own`.

        Loaded at first use, then kept until `hf_paraminit.clear_cache()`. A network that was given as an object never
        moves: where it would have to, a copy does the work.
        """
        config = self.config
        dtype = getattr(torch, config.decoder_dtype)
        if self._given is not None:
            nearest = self._given.device if own.type in ("cpu", "meta") else own
            return self._given.placed(prediction_device(config.device, nearest), dtype)
        device = prediction_device(config.device, own)
        source, filename, revision = self._place()
        return load_ghn(
            source,
            filename,
            revision,
            stamp=source_stamp(source),
            device=device,
            decoder_dtype=dtype,
            device_map=config.device_map,
        )

    def _place(self) -> tuple[str, str | None, str | None]:
        """Source, file name and revision to load from."""
        if self.config.source is not None:
            return self.config.source, self.config.filename, self.config.revision
        file = self.files.get(self.config.variant)
        if file is None:
            raise PredictorNotFoundError(
                f"init={self.identifier!r}: this predictor was only published inside its paper's source code. Read a "
                "copy with hf_paraminit.load_predictor(PATH), or pass init_kwargs={'source': PATH}; init='ghn3' ships "
                "with the package."
            )
        if file.folder is not None:
            return str(file.folder), None, None
        return f"hf-hub:{file.repository}", file.filename, self.config.revision

    def load(self) -> None:
        """Load the hypernetwork now, so that faults show before any model is built."""
        _ = self.predictor

    def with_config(self, **changes: Any) -> Self:
        return type(self)(self.config, predictor=self._given, **changes)

    def predict(self, target: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        started = time.perf_counter()
        own = next(target.parameters()).device
        ghn = self.predictor_for(own)
        loaded = time.perf_counter()
        graph = ghn.trace(
            target,
            input_size=self.config.input_size,
            attention=self.config.attention,
            mode=self.config.mode,
            example_inputs=self.config.example_inputs,
        )
        self.reads_values = graph.used_values
        traced = time.perf_counter()
        # The caller knows nothing of a device that is neither the model's nor in the settings.
        with torch.autocast(ghn.device.type, enabled=False):
            values = ghn.predict(
                graph,
                {name: tuple(parameter.shape) for name, parameter in target.named_parameters()},
                names={name for name in names if not target.get_parameter(name).is_complex()},
                predict_class_layers=self.config.predict_class_layers,
                generator=torch.Generator().manual_seed(self.config.seed),
            )
        if ghn.config.decodes == "scales":
            self._link_attention(target, graph, values)
        self._kept_reasons = dict(graph.kept_reasons)
        self._provenance = {
            **ghn.provenance,
            "notes": (
                f"graph: {graph.mode} mode, {graph.attention} attention, {len(graph)} nodes",
                *_departures(ghn, own),
            ),
            "seconds": {"load": loaded - started, "trace": traced - loaded, "decode": time.perf_counter() - traced},
        }
        return values

    def _link_attention(self, target: nn.Module, graph: ComputationalGraph, values: dict[str, Tensor]) -> None:
        """Relate output layers to the values they mix, where the model has attention that is recognised."""
        if not any(node.primitive == "msa" for node in graph.nodes):
            return
        if (attentions := _ATTENTIONS.get(graph)) is None:
            structure = ModelStructure(target, self.config.input_size, self.config.example_inputs)
            attentions = structure.attentions if structure.is_traceable else ()
            self.reads_values = self.reads_values or structure.used_values
            if not self.reads_values:
                _ATTENTIONS[graph] = attentions
        oppose_values(attentions, values)

    def provenance(self) -> dict[str, Any]:
        return self._provenance

    def reason_kept(self, target: nn.Module, name: str) -> str:
        if target.get_parameter(name).is_complex():
            return "complex numbers are not predicted"
        return self._kept_reasons.get(name, "no node in the computational graph stands for it")


def _departures(ghn: GHN, own: torch.device) -> list[str]:
    """What makes values differ, by rounding, from those that the model's own device and float32 would give."""
    notes = [f"predicted on {ghn.device}"] if own.type not in (ghn.device.type, "meta") else []
    if ghn.decoder.dtype != torch.float32:
        notes.append(f"decoder in {str(ghn.decoder.dtype).removeprefix('torch.')}")
    return notes


def spell_out_auto(settings: dict[str, Any]) -> dict[str, Any]:
    """Write `device="auto"`, which is no device, as the setting that it stands for."""
    return settings if settings.get("device") != "auto" else {**settings, "device": None, "device_map": "auto"}


def source_stamp(source: str) -> object:
    """Changes when a file or folder on this machine is written anew, as by saving while training goes on."""
    path = Path(source.partition(":")[2] if source.lower().startswith("local") else source).expanduser()
    files = [path, *path.glob("*.safetensors"), *path.glob("*.json")]
    return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.exists())


@lru_cache(maxsize=4)
def load_ghn(
    source: str,
    filename: str | None,
    revision: str | None,
    *,
    stamp: object,
    device: torch.device,
    decoder_dtype: torch.dtype,
    device_map: Literal["auto"] | None,
) -> GHN:
    """Load a hypernetwork once per process and device; `clear_cache` forgets it, and so does another `stamp`."""
    ghn = GHN.from_pretrained(source, filename=filename, revision=revision).requires_grad_(False)
    return ghn.spread(device_map) if device_map is not None else ghn.placed(device, decoder_dtype).requires_grad_(False)

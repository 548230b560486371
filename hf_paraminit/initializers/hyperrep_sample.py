"""Weights sampled from a hyper-representation, the learned codes of a zoo of trained networks."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from hf_paraminit.errors import InitializerConfigError, PredictionError, PredictorNotFoundError
from hf_paraminit.graphs.meta_copy import copy_structure, tensor_on_cpu
from hf_paraminit.hyperrep.matching import Matching, match_layers, match_layouts
from hf_paraminit.hyperrep.model import NAME, HyperRepresentation
from hf_paraminit.hyperrep.sample import DEFAULT_COMPONENTS, Coupling, Method, Sampling, bootstrap
from hf_paraminit.hyperrep.tokens import TokenLayout
from hf_paraminit.initializers.base import Initializer, InitializerConfig
from hf_paraminit.initializers.graph_hypernetwork import source_stamp
from hf_paraminit.initializers.placement import prediction_device
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.initializers.synthetic_warmup import first_tensor
from hf_paraminit.io.pretrained import CONFIG_FILE

BUILTIN_FOLDER = Path(__file__).parent.parent / "hyperrep" / "builtin"
_MAX_NAMED = 6
_TRAIN_HINT = (
    "Build a zoo of this architecture with `paraminit zoo build`, train on it with `paraminit train hyperrep`, and "
    "pass init_kwargs={'source': DIR}"
)


@register_initializer(NAME, summary="weights sampled around the codes of a zoo of trained networks", paper="2406.09997")
class HyperRepSample(Initializer):
    """Starts models of the architecture that the zoo was made of; classifiers for other classes keep their own start.

    A hyper-representation knows one architecture. Without `source`, the one that ships with the package and fits is
    taken. `policy="layers"` starts the layers of another architecture that have a counterpart of the same kind and
    shape. Batch-norm statistics are not sampled: call `hf_paraminit.recalibrate_batchnorm` before a zero-shot use.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(InitializerConfig):
        """Settings.

        Attributes:
            source: a folder, "local-dir:PATH", "hf-hub:org/repo[@revision]", or the name of one that ships with the
                package ("cnn-tiny", "resnet10t"); None for the shipped one that fits.
            revision: branch, tag or commit on the Hub.
            policy: what becomes of another architecture: "error", or "layers", which samples those that fit.
            method: "kde" around anchors, "neighbourhood", "uniform" or "gaussian".
            coupling: which parts of a code follow the same anchor: all ("anchor"), each "token" or each "dim" its own.
                The last two are what the papers say, and decode to networks near chance.
            bandwidth: of "kde", in standard deviations over the anchors.
            best_share: share of the anchors with the highest accuracy that is used.
            components: principal components of the anchors that "neighbourhood" draws in.
            candidates: draws of which the best on `data` is taken.
            rounds: how often the best tenth of the candidates become the anchors of a new draw.
            data: what candidates are scored on: batches (images, labels). No JSON value.
        """

        source: str | None = None
        revision: str | None = None
        policy: Literal["error", "layers"] = "error"
        method: Method = "kde"
        coupling: Coupling = "anchor"
        bandwidth: float = 0.1
        best_share: float = 1.0
        components: int = DEFAULT_COMPONENTS
        candidates: int = 1
        rounds: int = 1
        data: Any = field(default=None, compare=False, repr=False)

        def validate(self) -> None:
            _ = self.sampling
            if self.candidates < 1 or self.rounds < 1:
                raise InitializerConfigError(
                    f"candidates and rounds must be at least 1, found {self.candidates} and {self.rounds}."
                )
            if (self.candidates > 1) != (self.data is not None):
                raise InitializerConfigError(
                    "candidates > 1 and data go together: candidates are scored on data, batches (images, labels)."
                )

        @property
        def sampling(self) -> Sampling:
            """How codes are drawn."""
            return Sampling(
                method=self.method,
                coupling=self.coupling,
                bandwidth=self.bandwidth,
                best_share=self.best_share,
                components=self.components,
            )

    config: Config

    def __init__(
        self,
        config: InitializerConfig | None = None,
        *,
        predictor: HyperRepresentation | None = None,
        **settings: Any,
    ) -> None:
        """Use a loaded hyper-representation when `predictor` is given."""
        super().__init__(config, **settings)
        self.reads_values = self.config.data is not None  # classifiers that are not sampled decide scores, too
        self._given = predictor
        self._matching: Matching | None = None
        self._provenance: dict[str, Any] = {}

    def with_config(self, **changes: Any) -> Self:
        return type(self)(self.config, predictor=self._given, **changes)

    def load(self) -> None:
        """Load the named source now, so that faults show before any model is built."""
        if self._given is None and self.config.source is not None:
            self._candidates(torch.device("cpu"))

    def predict(self, target: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        started = time.perf_counter()
        representation, matching = self._choose(target)
        loaded = time.perf_counter()
        sampling, seed = self.config.sampling, self.config.seed
        if self.config.data is None:
            weights = representation.sample(1, seed=seed, sampling=sampling).weights
            notes: tuple[str, ...] = ()
        else:
            weights, notes = self._best_candidate(representation, matching, target)
        sampled = matching.values({name: tensor[0] for name, tensor in weights.items()})
        self._matching = matching
        self._provenance = {
            **representation.provenance,
            "notes": (*_notes(representation, matching, sampling), *notes, *_batchnorm_note(target)),
            "seconds": {"load": loaded - started, "sample": time.perf_counter() - loaded},
        }
        return {name: sampled[name] for name in names if name in sampled}

    def provenance(self) -> dict[str, Any]:
        return self._provenance

    def reason_kept(self, target: nn.Module, name: str) -> str:
        assert self._matching is not None
        return self._matching.reasons.get(name, "the zoo has no such parameter")

    def origin_of(self, name: str) -> str | None:
        assert self._matching is not None
        source = self._matching.sources.get(name)
        return None if source == name else f"sampled as {source}"

    def _choose(self, target: nn.Module) -> tuple[HyperRepresentation, Matching]:
        """The hyper-representation for a target, and which layers it gives values to."""
        found = self._candidates(next(target.parameters()).device)
        layouts = [_layout_of(target, representation) for representation in found]
        matchings = [match_layouts(own.layout, layout) for own, layout in zip(found, layouts, strict=True)]
        for representation, matching in zip(found, matchings, strict=True):
            if not matching.differences:
                return representation, matching
        if self.config.policy == "layers":
            by_layer = [match_layers(own.layout, layout) for own, layout in zip(found, layouts, strict=True)]
            best = max(range(len(found)), key=lambda index: len(by_layer[index].sources))
            return found[best], by_layer[best]
        is_named = self._given is not None or self.config.source is not None
        error = PredictionError if is_named else PredictorNotFoundError
        raise error(self._refusal(target, found, matchings))

    def _candidates(self, own: torch.device) -> list[HyperRepresentation]:
        """What could sample for a model on the device `own`: what was given or named, else all that ship."""
        device = prediction_device(self.config.device, own)
        if self._given is not None:
            given = self._given
            return [given if given.anchors.device == device else copy.deepcopy(given).to(device)]
        if self.config.source is not None:
            source = _place(self.config.source)
            return [load_hyper_representation(source, self.config.revision, stamp=source_stamp(source), device=device)]
        folders = sorted(path.parent for path in BUILTIN_FOLDER.glob("*/config.json"))
        if not folders:
            raise PredictorNotFoundError(
                f"init='{NAME}': this installation ships no hyper-representation. {_TRAIN_HINT}."
            )
        return [load_hyper_representation(str(folder), None, stamp=None, device=device) for folder in folders]

    def _refusal(self, target: nn.Module, found: Sequence[HyperRepresentation], matchings: Sequence[Matching]) -> str:
        known = " or ".join(representation.config.architecture or "an unnamed one" for representation in found)
        nearest = min(matchings, key=lambda matching: len(matching.differences))
        shown = "; ".join(nearest.differences[:_MAX_NAMED])
        more = len(nearest.differences) - _MAX_NAMED
        return (
            f"init='{NAME}' samples networks of one architecture, here {known}, and {type(target).__name__} differs in "
            f"{len(nearest.differences)} layers: {shown}{f'; and {more} more' if more > 0 else ''}. Pass "
            f"init_kwargs={{'policy': 'layers'}} to sample the layers that fit. {_TRAIN_HINT}."
        )

    def _best_candidate(
        self, representation: HyperRepresentation, matching: Matching, target: nn.Module
    ) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """Draw many, score each on the data, keep the best."""
        batches = list(self.config.data)
        scored = _Scored(copy_structure(target, tensor_on_cpu), batches)

        def score(code_Tz: Tensor) -> float:
            weights = representation.decode(code_Tz[None])
            return scored.accuracy(matching.values({name: tensor[0] for name, tensor in weights.items()}))

        codes_NTz = bootstrap(
            representation.chosen_anchors(self.config.sampling),
            max(1, self.config.candidates // 10) if self.config.rounds > 1 else 1,
            self.config.sampling,
            torch.Generator().manual_seed(self.config.seed),
            candidates=self.config.candidates,
            rounds=self.config.rounds,
            score=score,
        )
        note = (
            f"best of {self.config.candidates} candidates in {self.config.rounds} rounds, accuracy "
            f"{score(codes_NTz[0]):.3f} on the given data"
        )
        return representation.decode(codes_NTz[:1]), (note,)


class _Scored:
    """Accuracy of weights in a copy of the target; batch norm uses the statistics of the batch, having no others."""

    def __init__(self, replica: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        self.replica = replica.eval().requires_grad_(False)
        for module in self.replica.modules():
            if isinstance(module, _BatchNorm):
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None
        self.batches = list(batches)
        if not self.batches:
            raise PredictionError(f"init='{NAME}': `data` gave no batches (images, labels) to score candidates on.")

    def accuracy(self, weights: dict[str, Tensor]) -> float:
        hits = total = 0
        for images, labels in self.batches:
            scores = first_tensor(functional_call(self.replica, weights, (images,), strict=False))
            hits += int((scores.argmax(-1) == labels).sum())
            total += len(labels)
        return hits / total


def _place(source: str) -> str:
    """A shipped hyper-representation's folder for its name, else the source as it is; a folder of the user's wins."""
    shipped = BUILTIN_FOLDER / source
    is_name = Path(source).name == source and not Path(source).exists()
    return str(shipped) if is_name and (shipped / CONFIG_FILE).is_file() else source


def _layout_of(target: nn.Module, representation: HyperRepresentation) -> TokenLayout:
    norms: Any = representation.config.norms
    return TokenLayout.from_module(target, representation.layout.token_dim, norms=norms)


def _notes(representation: HyperRepresentation, matching: Matching, sampling: Sampling) -> list[str]:
    around = f"{representation.config.num_anchors} anchors of {representation.config.architecture or 'its zoo'}"
    notes = [f"{sampling.method} around {around}, coupling {sampling.coupling}, bandwidth {sampling.bandwidth:g}"]
    if matching.differences:
        notes.append(f"another architecture: {len(matching.sources)} parameters have a counterpart in the zoo's")
    return notes


def _batchnorm_note(target: nn.Module) -> list[str]:
    if any(isinstance(module, _BatchNorm) and module.track_running_stats for module in target.modules()):
        return ["batch-norm statistics are not sampled; hf_paraminit.recalibrate_batchnorm estimates them from data"]
    return []


@lru_cache(maxsize=8)
def load_hyper_representation(
    source: str, revision: str | None, *, stamp: object, device: torch.device
) -> HyperRepresentation:
    """Load a hyper-representation once per process; `clear_cache` forgets it, and so does another `stamp`.

    Raises:
        PredictorNotFoundError: Nothing there.
        CheckpointError: The files are damaged, or of another kind of predictor.
    """
    return HyperRepresentation.from_pretrained(source, revision=revision).requires_grad_(False).to(device)

"""Predictors that are given by a place or by their tensors instead of a registered name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hf_paraminit.errors import CheckpointError, InitializerConfigError, PredictorNotFoundError
from hf_paraminit.ghn.model import GHN, GRAPHS
from hf_paraminit.initializers.base import Initializer, InitializerConfig
from hf_paraminit.initializers.graph_hypernetwork import GraphHypernetworkInitializer, load_ghn, spell_out_auto
from hf_paraminit.initializers.hyperrep_sample import load_hyper_representation
from hf_paraminit.initializers.learngene_lets import LearngeneLeTs, load_lets
from hf_paraminit.initializers.registry import create, list_initializers, register_initializer
from hf_paraminit.io.hub import LocalSource, download, parse_source
from hf_paraminit.io.pretrained import CONFIG_FILE, PredictorFile, PretrainedPredictor, read_predictor_config
from hf_paraminit.lets.generator import LeTsGenerator
from hf_paraminit.lets.tleg import TLEG

# One name each of what the published code and we call the tensors of a learngene.
LEARNGENES: dict[type[PretrainedPredictor[Any]], set[str]] = {
    LeTsGenerator: {"__sm_patch_embed_proj_weight", "gene.patch_embed.weight"},
    TLEG: {"blocks.block.mlp.fc1.instances.0.weight_base", "base.mlp.fc1.weight"},
}


@register_initializer("predictor", summary="a predictor from a folder or a Hub repository", listed=False)
class PredictorInitializer(Initializer):
    """`init="hf-hub:org/repo"` or `init="local-dir:PATH"`: finds out at first use which method the predictor is for."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(InitializerConfig):
        """Settings.

        Attributes:
            source: "hf-hub:org/repo[@revision]" or "local-dir:PATH".
            settings: Further settings of the method that the predictor is for.
        """

        source: str = ""

        def validate(self) -> None:
            parse_source(self.source)

    config: Config
    reads_values = False  # as far as is known before the predictor is; a method that does predicts twice

    def __init__(self, config: InitializerConfig | None = None, **settings: Any) -> None:
        settings = spell_out_auto(settings)
        own = {key: settings.pop(key) for key in ("source", "seed", "device") if key in settings}
        super().__init__(config, **own)
        self._settings = settings  # checked by the method, once it is known
        self._method: Initializer | None = None

    @property
    def method(self) -> Initializer:
        """The initializer that `paraminit_type` in the predictor's `config.json` names."""
        if self._method is None:
            path = self._config_path()
            kind = read_predictor_config(path)["paraminit_type"]
            if kind == self.name:
                raise CheckpointError(
                    f"{path}: paraminit_type is {kind!r}, which is no method; expected one of "
                    f"{', '.join(list_initializers())}."
                )
            shared = {"seed": self.config.seed, "device": self.config.device}
            self._method = create(kind, source=self.config.source, **shared, **self._settings)
        return self._method

    @property
    def identifier(self) -> str:
        """The method's name once it is known, else the place."""
        return self._method.identifier if self._method is not None else self.config.source

    def with_config(self, **changes: Any) -> PredictorInitializer:
        return type(self)(self.config, **{**self._settings, **changes})

    def predict(self, target: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        values = self.method.predict(target, names)
        self.reads_values = self.method.reads_values
        return values

    def host_arguments(self, definition: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if arguments.get("pretrained"):  # nothing may be missing, and then the predictor is never asked for
            return {}
        return self.method.host_arguments(definition, arguments)

    def provenance(self) -> dict[str, Any]:
        return self.method.provenance()

    def reason_kept(self, target: nn.Module, name: str) -> str:
        return self.method.reason_kept(target, name)

    def origin_of(self, name: str) -> str | None:
        return self.method.origin_of(name)

    def _config_path(self) -> Path:
        place = parse_source(self.config.source)
        if isinstance(place, LocalSource):
            return place.path / CONFIG_FILE
        return download(place.repo_id, CONFIG_FILE, revision=place.revision).path


def load_predictor(
    source: str | Path | Mapping[str, Tensor], *, config: Mapping[str, Any] | None = None
) -> Initializer:
    """Load a predictor from anywhere; the result can be passed as `init=`.

    Args:
        source: A folder, a checkpoint file of the published code (any container, never executed), a safetensors file
            with `config`, "local-dir:PATH", "hf-hub:org/repo[@revision]", or a state dict.
        config: Architecture of a state dict or safetensors file, in our own or the published names; read off the
            tensors' shapes when absent. A learngene under our own names needs one.

    Returns:
        The initializer, its network loaded.

    Raises:
        PredictorNotFoundError: Nothing there.
        CheckpointError: Damaged or unsafe files, or tensors that fit no known network.
        InitializerConfigError: `config` with a source that has its own.
    """
    if isinstance(source, Mapping):
        return _initializer_for(predictor_class(source).from_state_dict(source, config))
    path = Path(source)
    if path.is_file():
        return _initializer_for(read_predictor(path, config))
    if config is not None:
        raise InitializerConfigError(
            f"load_predictor({str(source)!r}): `config` goes with tensors or a file; a folder or repository has its "
            "own."
        )
    if not path.is_dir() and ":" not in str(source):
        raise PredictorNotFoundError(
            f"load_predictor: there is no file or folder {str(source)!r}. For a Hub repository write 'hf-hub:{source}'."
        )
    method = PredictorInitializer(source=f"local-dir:{path}" if path.is_dir() else str(source)).method
    if isinstance(method, (GraphHypernetworkInitializer, LearngeneLeTs)):
        method.load()
    return method


def read_predictor(path: Path, config: Mapping[str, Any] | None = None) -> PretrainedPredictor[Any]:
    """Read a predictor of whichever kind from one file of published code, or bare safetensors.

    Args:
        path: The file.
        config: Architecture; by default what the file says, or what its shapes imply.

    Raises:
        CheckpointError: A damaged or unsafe file, or tensors that fit no known network.
    """
    file = PredictorFile.read(path)
    return predictor_class(file.tensors).from_contents(file, config)


def predictor_class(names: Iterable[Any]) -> type[PretrainedPredictor[Any]]:
    """The network that tensors of these names belong to: a learngene by its names, else a graph hypernetwork."""
    known = {str(name).removeprefix("module.") for name in names}
    return next((network for network, marks in LEARNGENES.items() if known & marks), GHN)


def _initializer_for(network: PretrainedPredictor[Any]) -> Initializer:
    return create(network.paraminit_type, predictor=network)


def clear_cache() -> None:
    """Forget the predictors that were loaded in this process, and the graphs of the models that they have read."""
    load_ghn.cache_clear()
    load_lets.cache_clear()
    load_hyper_representation.cache_clear()
    GRAPHS.clear()

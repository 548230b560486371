"""How every trained predictor is stored: a folder or Hub repository with `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import torch
from huggingface_hub import ModelCard as HubModelCard, PyTorchModelHubMixin
from torch import Tensor, nn

from hf_paraminit import __version__
from hf_paraminit.errors import CheckpointError, PredictorNotFoundError
from hf_paraminit.io.atomic import atomic_folder, atomic_write
from hf_paraminit.io.hub import HubSource, LocalSource, download, parse_source
from hf_paraminit.io.model_card import MetricTable, ModelCard
from hf_paraminit.io.safe_load import read_checkpoint
from hf_paraminit.io.safetensors_file import file_sha256, is_finite, load_tensors, read_tensors, write_tensors

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT_VERSION = 1


class PredictorConfig(Protocol):
    """Architecture of a predictor as plain JSON values."""

    def to_dict(self) -> dict[str, Any]: ...

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self: ...


Config = TypeVar("Config", bound=PredictorConfig)


class PretrainedPredictor(
    nn.Module, PyTorchModelHubMixin, Generic[Config], library_name="hf_paraminit", license="apache-2.0"
):
    """A network that predicts weights, with its stored form.

    Subclasses set `config_class`, `paraminit_type` and, to read files of published code, `from_state_dict`.

    Attributes:
        config: Architecture.
        metadata: JSON values that `config.json` keeps beside the architecture: training data, metrics, sources.
        provenance: Where the weights came from: `predictor`, `revision`, `sha256`; empty for a new network.
    """

    config_class: ClassVar[type[PredictorConfig]]

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.metadata: dict[str, Any] = {}
        self.provenance: dict[str, str | None] = {}

    @property
    def paraminit_type(self) -> str:
        """Registered name of the initializer that the predictor serves."""
        raise NotImplementedError

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Self:
        """Build from the tensors of published code."""
        raise NotImplementedError

    @classmethod
    def skeleton(cls, config: PredictorConfig) -> Self:
        """Build on the meta device, in eval mode: names, shapes and dtypes without memory."""
        with torch.device("meta"):
            return cls(config).eval()  # type: ignore[arg-type]

    def assign_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace all parameters of a skeleton.

        Raises:
            CheckpointError: Names, shapes, dtypes or values do not fit.
        """
        if integers := [name for name, tensor in tensors.items() if not tensor.is_floating_point()]:
            raise CheckpointError(f"{type(self).__name__}: expected floating-point tensors, found others: {integers}.")
        floats = {name: tensor.float() for name, tensor in tensors.items()}
        if spoiled := [name for name, tensor in floats.items() if not is_finite(tensor)]:
            raise CheckpointError(
                f"{type(self).__name__}: NaN or infinite values in {', '.join(spoiled)}. The checkpoint is damaged."
            )
        try:
            self.load_state_dict(floats, assign=True)
        except RuntimeError as error:  # torch lists every missing, unexpected and mismatched name
            raise CheckpointError(f"The tensors do not fit the configuration {self.config}: {error}") from error

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        source: str | Path,
        *,
        filename: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Self:
        """Load a predictor from a folder, a file or the Hub.

        Args:
            source: An existing folder with `config.json` and `model.safetensors`; an existing checkpoint file of the
                published code; `"local-dir:PATH"`, `"hf-hub:org/repo[@revision]"` or `"org/repo"`.
            filename: A checkpoint of the published code inside a Hub repository, e.g. "ghn3tm8.pt".
            revision: Branch, tag or commit on the Hub.
            cache_dir: Hub cache; None for the shared one.
            local_files_only: Do not use the network.
            token: Hub token.

        Returns:
            The network in eval mode.

        Raises:
            PredictorNotFoundError: Nothing there; the message names the ways out.
            CheckpointError: The files are damaged, unsafe, or do not fit each other.
        """
        path = Path(source)
        if path.is_dir():
            return cls._from_folder(path)
        if path.is_file():
            return cls.from_file(path)
        place = parse_source(str(source) if ":" in str(source) else f"hf-hub:{source}")
        if isinstance(place, LocalSource):
            return cls._from_folder(place.path)
        place = HubSource(place.repo_id, revision or place.revision)
        options = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        return cls._from_hub(place, filename, options)

    @classmethod
    def _from_hub(cls, place: HubSource, filename: str | None, options: dict[str, Any]) -> Self:
        if filename is not None:
            file = download(place.repo_id, filename, revision=place.revision, **options)
            network = cls.from_file(file.path)
            network.provenance |= {"predictor": f"{place.repo_id}/{filename}", "revision": file.commit}
            network.metadata["converted_from"] = f"{place.repo_id}/{filename}@{file.commit}"
            return network
        config = download(place.repo_id, CONFIG_FILE, revision=place.revision, **options)
        weights = download(place.repo_id, WEIGHTS_FILE, revision=config.commit, **options)
        return cls._from_files(config.path, weights.path, predictor=place.repo_id, revision=config.commit)

    @classmethod
    def _from_folder(cls, folder: Path) -> Self:
        return cls._from_files(folder / CONFIG_FILE, folder / WEIGHTS_FILE, predictor=str(folder), revision=None)

    @classmethod
    def _from_files(cls, config_path: Path, weights_path: Path, *, predictor: str, revision: str | None) -> Self:
        record = read_predictor_config(config_path)
        network = cls.skeleton(cls.config_class.from_dict(record["config"]))
        network.load_state_dict(read_tensors(weights_path, network.state_dict()), assign=True)
        if network.paraminit_type != record["paraminit_type"]:
            raise CheckpointError(
                f"{config_path} says paraminit_type {record['paraminit_type']!r}, but its architecture is a "
                f"{network.paraminit_type!r}. Write the folder again with save_pretrained."
            )
        network.metadata = record.get("metadata", {})
        network.provenance = {"predictor": predictor, "revision": revision, "sha256": file_sha256(weights_path)}
        return network

    @classmethod
    def from_file(cls, path: Path, config: Mapping[str, Any] | None = None) -> Self:
        """Read one file of published code (any pickle container, never executed) or bare safetensors.

        Args:
            path: The file.
            config: Architecture; by default what the file says, or what its shapes imply.

        Raises:
            CheckpointError: A damaged or unsafe file, or tensors that do not fit.
        """
        if path.suffix == ".safetensors":
            state_dict, own_config, sha256 = load_tensors(path), None, file_sha256(path)
        else:
            checkpoint = read_checkpoint(path)
            state_dict, own_config, sha256 = checkpoint.state_dict, checkpoint.config, checkpoint.sha256
        network = cls.from_state_dict(state_dict, config or own_config)
        network.metadata = {"converted_from": path.name, "converted_from_sha256": sha256}
        network.provenance = {"predictor": str(path), "revision": None, "sha256": sha256}
        return network

    def generate_model_card(self, *args: Any, **kwargs: Any) -> HubModelCard:
        """Render the README of the stored folder from `metadata["card"]`; the Hub mixin calls it.

        Its entries are those of `io.model_card.ModelCard`; what is not known says so.
        """
        known = dict(self.metadata.get("card", {}))
        tables = [MetricTable(**table) for table in known.pop("metrics", [])]
        facts = {
            "title": f"{self.paraminit_type} predictor",
            "summary": f"A {self.paraminit_type} network that predicts initial weights of vision models.",
            "init": "hf-hub:ORGANISATION/REPOSITORY",
            "predicts": "Every tensor that the report of `hf_paraminit.initialize` lists as predicted.",
            "training_data": "Not recorded.",
            "command": "Not recorded.",
            "cost": "Not recorded.",
            "limits": ["Not evaluated."],
            "converted_from": self.metadata.get("converted_from", ""),
        }
        return HubModelCard(ModelCard(**{**facts, **known, "metrics": tables}).render())

    def save_pretrained(self, save_directory: str | Path, *, repo_id: str | None = None, **options: Any) -> str | None:
        """Write the folder as a whole, or leave it as it was; a README that is there is kept.

        Args:
            save_directory: Folder to create or to write into.
            repo_id: Repository on the Hub for `push_to_hub=True`; the folder's name by default.
            **options: As `PyTorchModelHubMixin.save_pretrained` takes them.

        Raises:
            OutputError: The folder could not be written.
        """
        folder = Path(save_directory)
        # The mixin deletes config.json before it writes anything.
        with atomic_folder(folder) as staging:
            if (folder / "README.md").exists():
                shutil.copyfile(folder / "README.md", staging / "README.md")
            return super().save_pretrained(staging, repo_id=repo_id or folder.name, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write `config.json` and `model.safetensors`; the Hub mixin calls it to save and to push.

        A network in 16 bit (`network.half()`) is stored so; loading brings it back to float32.
        """
        record = {
            "paraminit_type": self.paraminit_type,
            "format_version": FORMAT_VERSION,
            "paraminit_version": __version__,
            "config": self.config.to_dict(),
            "metadata": self.metadata,
        }
        write_tensors(save_directory / WEIGHTS_FILE, self.state_dict())
        with atomic_write(save_directory / CONFIG_FILE) as path:
            path.write_text(json.dumps(record, indent=2) + "\n")


def read_predictor_config(path: Path) -> dict[str, Any]:
    """Read the `config.json` of a predictor folder.

    Raises:
        PredictorNotFoundError: There is no such file.
        CheckpointError: It is no JSON object of a format that this version reads.
    """
    if not path.is_file():
        raise PredictorNotFoundError(
            f"No predictor at {path.parent}: it has no {path.name}. Pass a folder written by save_pretrained, or turn "
            "a foreign checkpoint into one with `paraminit convert FILE --output DIR`."
        )
    try:
        record = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # endless numbers and nesting raise more than JSONDecodeError
        raise CheckpointError(f"{path} is not valid JSON ({error}). Fetch or write it again.") from error
    expected = {"paraminit_type": str, "config": dict}
    if not isinstance(record, dict) or not all(isinstance(record.get(key), kind) for key, kind in expected.items()):
        raise CheckpointError(f"{path} does not describe a predictor: it needs paraminit_type (text) and config.")
    if record.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: expected format_version {FORMAT_VERSION}, found {record.get('format_version')!r}. "
            "A newer hf_paraminit may read it."
        )
    return record

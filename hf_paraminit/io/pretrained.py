"""How every trained predictor is stored: a folder or Hub repository with `config.json` and `model.safetensors`."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import torch
from huggingface_hub import CommitInfo, ModelCard as HubModelCard, PyTorchModelHubMixin
from torch import Tensor, nn

from hf_paraminit import __version__
from hf_paraminit.errors import CheckpointError, PredictorNotFoundError
from hf_paraminit.io.atomic import atomic_folder, atomic_write
from hf_paraminit.io.hub import HubSource, LocalSource, download, parse_source
from hf_paraminit.io.model_card import PLACEHOLDER_REPOSITORY, card_from_record
from hf_paraminit.io.safe_load import read_checkpoint
from hf_paraminit.io.safetensors_file import (
    INDEX_FILE,
    file_sha256,
    is_finite,
    load_tensors,
    read_tensors,
    write_shards,
)
from hf_paraminit.io.upload import upload

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
FORMAT_VERSION = 1
UPLOAD_MESSAGE = "Upload a predictor with hf_paraminit"

_WEIGHTS_NAME = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")  # no path: files stay inside the folder
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorFile:
    """What one file of published code, or bare safetensors, holds.

    Attributes:
        path: The file.
        tensors: By the names in it.
        config: What it says of the architecture, if anything.
        sha256: Of the file, in hexadecimal.
    """

    path: Path
    tensors: dict[str, Tensor]
    config: dict[str, Any] | None
    sha256: str

    @classmethod
    def read(cls, path: Path) -> PredictorFile:
        """Read a file without running anything in it.

        Raises:
            CheckpointError: A damaged or unsafe file.
        """
        if path.suffix == ".safetensors":
            return cls(path=path, tensors=load_tensors(path), config=None, sha256=file_sha256(path))
        found = read_checkpoint(path)
        return cls(path=path, tensors=found.state_dict, config=found.config, sha256=found.sha256)


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
        for name in stored_files(read_predictor_config(config.path)):
            download(place.repo_id, name, revision=config.commit, **options)
        return cls._from_folder(config.path.parent, predictor=place.repo_id, revision=config.commit)

    @classmethod
    def _from_folder(cls, folder: Path, *, predictor: str | None = None, revision: str | None = None) -> Self:
        config_path = folder / CONFIG_FILE
        record = read_predictor_config(config_path)
        weights_paths = [folder / name for name in weights_files(record)]
        network = cls.skeleton(cls.config_class.from_dict(record["config"]))
        network.load_state_dict(read_tensors(weights_paths, network.state_dict()), assign=True)
        hashes = checked_hashes(weights_paths, record.get("weights_sha256", {}))
        if network.paraminit_type != record["paraminit_type"]:
            raise CheckpointError(
                f"{config_path} says paraminit_type {record['paraminit_type']!r}, but its architecture is a "
                f"{network.paraminit_type!r}. Write the folder again with save_pretrained."
            )
        network.metadata = record.get("metadata", {})
        network.provenance = {
            "predictor": predictor or str(folder),
            "revision": revision,
            "sha256": _joint_hash(hashes),
        }
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
        return cls.from_contents(PredictorFile.read(path), config)

    @classmethod
    def from_contents(cls, file: PredictorFile, config: Mapping[str, Any] | None = None) -> Self:
        """As `from_file`, of a file that was read before."""
        network = cls.from_state_dict(file.tensors, config or file.config)
        network.metadata = {"converted_from": file.path.name, "converted_from_sha256": file.sha256}
        network.provenance = {"predictor": str(file.path), "revision": None, "sha256": file.sha256}
        return network

    def generate_model_card(self, *args: Any, **kwargs: Any) -> HubModelCard:
        """Render the README of the stored folder from `metadata["card"]`.

        Its entries are those of `io.model_card.ModelCard`; what is not known says so.
        """
        declared = self._hub_mixin_info.model_card_data
        card = card_from_record(
            {"paraminit_type": self.paraminit_type, "metadata": self.metadata},
            license=declared.license,
            tags=declared.tags,
            pipeline_tag=declared.pipeline_tag,
        )
        return HubModelCard(card.render())

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        max_shard_size: int | str = "5GB",
        **push_options: Any,
    ) -> str | None:
        """Write the folder as a whole, or leave it as it was; a README that is there is kept.

        A network in 16 bit (`network.half()`) is stored so; loading brings it back to float32.

        Args:
            save_directory: Folder to create or to write into.
            push_to_hub: Push to the Hub as well.
            repo_id: Repository to push to; the folder's name by default.
            max_shard_size: Largest weights file, in bytes or as "5GB".
            **push_options: As `push_to_hub` takes them.

        Returns:
            Address of the commit when pushed, else None.

        Raises:
            OutputError: The folder could not be written, or not be pushed.
        """
        folder = Path(save_directory)
        with atomic_folder(folder) as staging:
            self._save_pretrained(staging, max_shard_size)
            if not (folder / CARD_FILE).exists():
                self.generate_model_card().save(staging / CARD_FILE)
        if push_to_hub:
            return self.push_to_hub(repo_id or folder.name, max_shard_size=max_shard_size, **push_options)
        return None

    def _save_pretrained(self, save_directory: Path, max_shard_size: int | str = "5GB") -> None:
        """Write `config.json` and the weights."""
        names = write_shards(save_directory, self.state_dict(), max_shard_size)
        record = {
            "paraminit_type": self.paraminit_type,
            "format_version": FORMAT_VERSION,
            "paraminit_version": __version__,
            "weights_sha256": {name: file_sha256(save_directory / name) for name in names},
            "config": self.config.to_dict(),
            "metadata": self.metadata,
        }
        with atomic_write(save_directory / CONFIG_FILE) as path:
            path.write_text(json.dumps(record, indent=2) + "\n")

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        commit_message: str = UPLOAD_MESSAGE,
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "5GB",
    ) -> CommitInfo:
        """Write the folder to a temporary place, load it from there as a user would, and only then upload it.

        Args:
            repo_id: `organization/name`; made when needed.
            commit_message: Of the one commit.
            private: Of a new repository; None for the default of its owner.
            token: Hub token with the permission to write; None for the saved one.
            branch: Branch, made when needed; None for the default one.
            create_pr: Propose the commit as a pull request.
            max_shard_size: Largest weights file, in bytes or as "5GB".

        Returns:
            Address of the commit; its `oid` is the hash for `init="hf-hub:organization/name@hash"`.

        Raises:
            CheckpointError: What was written cannot be loaded: NaN or infinite values, say.
            OutputError: The upload failed; the message says what to do next.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "predictor"
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            type(self).from_pretrained(folder)
            return push_folder(
                folder,
                repo_id,
                message=commit_message,
                private=private,
                token=token,
                revision=branch,
                create_pr=create_pr,
            )


def push_folder(folder: Path, repo_id: str, **options: Any) -> CommitInfo:
    """Upload a predictor's config, weights and model card as they are, and nothing else that lies beside them.

    A missing card is written from what `config.json` records. The caller has loaded the folder, so it is known to work.

    Args:
        folder: A predictor's folder.
        repo_id: `organization/name`.
        **options: As `io.upload.upload` takes them.

    Raises:
        CheckpointError, PredictorNotFoundError: `config.json` is damaged or missing.
        OutputError: The upload failed.
    """
    record = read_predictor_config(folder / CONFIG_FILE)
    files: dict[str, Path | bytes] = {name: folder / name for name in (CONFIG_FILE, *stored_files(record))}
    card_path = folder / CARD_FILE
    card = card_path.read_text(encoding="utf-8") if card_path.is_file() else card_from_record(record).render()
    files[CARD_FILE] = card.replace(PLACEHOLDER_REPOSITORY, repo_id).encode()
    return upload(repo_id, files, **options)


def weights_files(record: Mapping[str, Any]) -> list[str]:
    """Files that hold the weights, by the record in `config.json`; the first version wrote one, and no hash."""
    return list(record.get("weights_sha256", {WEIGHTS_FILE: None}))


def stored_files(record: Mapping[str, Any]) -> list[str]:
    """The weights, and where there are several files the index that other libraries ask for."""
    names = weights_files(record)
    return names if len(names) == 1 else [*names, INDEX_FILE]


def checked_hashes(paths: Sequence[Path], expected: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of each file, by name, compared with what `config.json` says where it says something.

    Values that are finite but not those that were saved show only here.

    Raises:
        CheckpointError: A file is not the one that was saved.
    """
    found = {path.name: file_sha256(path) for path in paths}
    for path in paths:
        if (wanted := expected.get(path.name, found[path.name])) != found[path.name]:
            raise CheckpointError(
                f"{path} is not the file that was saved: {CONFIG_FILE} says SHA-256 {wanted}, the content has "
                f"{found[path.name]}. It was damaged or exchanged: fetch it again; if you changed it on purpose, load "
                "the file itself and write the folder again with save_pretrained."
            )
    return found


def _joint_hash(hashes: Mapping[str, str]) -> str:
    """The hash of the one file; of several, the hash of their hashes."""
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256("".join(hashes.values()).encode()).hexdigest()


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
    if not isinstance(record.get("metadata", {}), dict):
        raise CheckpointError(f"{path}: metadata must be an object, found {record['metadata']!r}.")
    _require_hashes(path, record.get("weights_sha256", {WEIGHTS_FILE: "0" * 64}))
    return record


def _require_hashes(path: Path, hashes: object) -> None:
    """Names come from a file that others wrote, so they must be plain names of weights."""
    if not isinstance(hashes, dict) or not hashes:
        raise CheckpointError(f"{path}: weights_sha256 must map file names to hashes, found {hashes!r}.")
    for name, digest in hashes.items():
        if not _WEIGHTS_NAME.fullmatch(name) or not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise CheckpointError(
                f"{path}: weights_sha256 must map names such as {WEIGHTS_FILE!r} to 64 hexadecimal digits, found "
                f"{name!r}: {digest!r}. Fetch or write the file again."
            )

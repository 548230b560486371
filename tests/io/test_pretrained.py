"""The stored form of predictors: what is written, what is read back, what is refused."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import Tensor

import hf_paraminit
from hf_paraminit.errors import (
    CheckpointError,
    OutputError,
    PredictorNotFoundError,
    UnknownInitializerError,
    UnsafeFileError,
)
from hf_paraminit.ghn.config import GHNConfig
from hf_paraminit.ghn.model import GHN
from hf_paraminit.initializers.graph_hypernetwork import BUILTIN_FOLDER

CHECKPOINTS = Path(__file__).parents[1] / "golden" / "checkpoints"
CONFIG = GHNConfig(hidden_dim=8, num_layers=2, num_heads=2, max_shape=(8, 12, 11, 11), num_classes=10)
TOKEN = {"HF_TOKEN": "hf_secret"}

PUSH = """
import torch
from hf_paraminit import GHN, CheckpointError
network = GHN.from_pretrained({file!r})
commit = network.push_to_hub("me/mine", private=True, branch="trial", max_shard_size=30_000, commit_message="By hand")
saved = network.save_pretrained({folder!r}, push_to_hub=True, repo_id="me/saved")
read = GHN.from_pretrained(f"hf-hub:me/mine@{{commit.oid}}")
assert all(torch.equal(tensor, read.state_dict()[name]) for name, tensor in network.state_dict().items())
assert read.provenance["revision"] == commit.oid
with torch.no_grad():
    network.ln.bias[0] = torch.nan
try:
    network.push_to_hub("me/spoiled")
except CheckpointError as error:
    print(commit.oid, str(saved).rpartition("/")[2], error, sep="\\n")
"""


@pytest.fixture
def ghn() -> GHN:
    network = GHN(CONFIG)
    network.metadata = {"training": {"data": "synthetic", "steps": 5}}
    return network


@pytest.fixture
def folder(ghn: GHN, tmp_path: Path) -> Path:
    ghn.save_pretrained(tmp_path / "predictor")
    return tmp_path / "predictor"


def edit_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    record = json.loads((folder / "config.json").read_text())
    change(record)
    (folder / "config.json").write_text(json.dumps(record))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


# Round trips


def test_folder_round_trip(ghn: GHN, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors"}
    read = GHN.from_pretrained(folder)
    assert read.config == CONFIG
    assert read.metadata == ghn.metadata
    assert not read.training
    assert list(read.state_dict()) == list(ghn.state_dict())
    for name, tensor in ghn.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name
    assert read.provenance["predictor"] == str(folder)
    assert len(str(read.provenance["sha256"])) == 64


@pytest.mark.parametrize("cast", [GHN.half, GHN.bfloat16])
def test_16_bit_folder_reads_as_float32(ghn: GHN, tmp_path: Path, cast: Callable[[GHN], GHN]) -> None:
    full_size = sum(tensor.nbytes for tensor in ghn.state_dict().values())
    cast(ghn).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 0.6 * full_size
    read = GHN.from_pretrained(tmp_path)
    for name, tensor in ghn.state_dict().items():
        assert read.state_dict()[name].dtype == torch.float32
        assert torch.equal(read.state_dict()[name], tensor.float())


def test_config_file_says_what_the_predictor_is(folder: Path) -> None:
    record = json.loads((folder / "config.json").read_text())
    assert record["paraminit_type"] == "ghn3"
    assert record["format_version"] == 1
    assert record["paraminit_version"] == hf_paraminit.__version__
    assert GHNConfig.from_dict(record["config"]) == CONFIG


def test_saving_twice_replaces_the_first(ghn: GHN, folder: Path) -> None:
    with torch.no_grad():
        ghn.ln.bias.fill_(3)
    ghn.save_pretrained(folder)
    assert bool((GHN.from_pretrained(folder).ln.bias == 3).all())


def test_loading_draws_no_random_numbers(folder: Path) -> None:
    random_state = torch.get_rng_state()
    GHN.from_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("kind", ["folder", "text", "local-dir"])
def test_ways_to_name_a_folder(folder: Path, kind: str) -> None:
    source = {"folder": folder, "text": str(folder), "local-dir": f"local-dir:{folder}"}[kind]
    assert GHN.from_pretrained(source).config == CONFIG


# Files of published code


@pytest.mark.parametrize(
    ("name", "reference", "initializer"),
    [
        ("ghn3_micro_joblib", "ghn3_micro_joblib", "ghn3"),
        ("ghn3_micro_joblib_zlib", "ghn3_micro_joblib", "ghn3"),
        ("ghn3_micro_training", "ghn3_micro_training", "ghn3"),
        ("ghn2_micro_torchsave", "ghn2_micro_torchsave", "ghn2"),
        ("ghn2_micro_torchsave_with_optimizer", "ghn2_micro_after_step", "ghn2"),
        ("ghn2_micro_torchsave_legacy", "ghn2_micro_after_step", "ghn2"),
    ],
)
def test_published_containers(name: str, reference: str, initializer: str, tmp_path: Path) -> None:
    read = GHN.from_pretrained(CHECKPOINTS / f"{name}.pt")
    expected = GHN.from_state_dict(load_file(CHECKPOINTS / f"{reference}.reference.safetensors"))
    assert read.paraminit_type == initializer
    assert read.config == expected.config
    for key, tensor in expected.state_dict().items():
        assert torch.equal(read.state_dict()[key], tensor), key
    assert read.metadata["converted_from"] == f"{name}.pt"
    read.save_pretrained(tmp_path)
    again = GHN.from_pretrained(tmp_path)
    assert again.config == read.config
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in read.state_dict().items())


def test_bare_safetensors(tmp_path: Path, ghn: GHN) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(ghn.state_dict(), path)
    assert GHN.from_pretrained(path).config == CONFIG
    assert GHN.from_file(path, CONFIG.to_dict()).config == CONFIG
    with pytest.raises(CheckpointError, match="do not fit"):
        GHN.from_file(path, {**CONFIG.to_dict(), "num_layers": 3})


@pytest.mark.parametrize("name", ["malicious_print_joblib", "malicious_nested_joblib", "malicious_print_torchsave"])
def test_files_with_code_are_refused(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnsafeFileError, match="Nothing of it was executed"):
        GHN.from_pretrained(CHECKPOINTS / f"{name}.pt")
    assert "CODE EXECUTED" not in "".join(capfd.readouterr())


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(format_version=2), "format_version 1, found 2"),
        (lambda record: record.pop("format_version"), "format_version"),
        (lambda record: record.pop("paraminit_type"), "paraminit_type"),
        (lambda record: record.update(paraminit_type=3), "paraminit_type"),
        (lambda record: record.update(paraminit_type="ghn2"), "'ghn2'.*'ghn3'"),
        (lambda record: record.update(config=[1]), "config"),
        (lambda record: record["config"].update(hidden_dim=16), "does not fit"),
        (lambda record: record["config"].update(num_layers=3), "gnn.2.ln1.weight"),
        (lambda record: record["config"].update(hidden_dim=6), "multiple of 4"),
        (lambda record: record["config"].update(heads=2), "unknown keys"),
        (lambda record: record["config"].update(max_shape="large"), "max_shape"),
    ],
)
def test_tampered_config_is_refused(folder: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    edit_config(folder, change)
    with pytest.raises(CheckpointError, match=message):
        GHN.from_pretrained(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe", b"null"])
def test_config_that_is_no_json_object_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        GHN.from_pretrained(folder)


@pytest.mark.parametrize("kept", [0, 7, 100, 0.5, 0.999])
def test_truncated_weights_are_refused(folder: Path, kept: float) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        GHN.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors["ln.weight"].fill_(torch.nan), r"NaN.*ln\.weight"),
        (lambda tensors: tensors["embed.weight"][0].fill_(torch.inf), r"embed\.weight"),
        (lambda tensors: tensors.pop("ln.bias"), r"missing: ln\.bias"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda tensors: tensors.update({"ln.bias": torch.zeros(9)}), r"ln\.bias"),
        (lambda tensors: tensors.update({"ln.bias": torch.zeros(8, dtype=torch.int64)}), r"ln\.bias"),
    ],
)
def test_damaged_weights_are_refused(folder: Path, change: Callable[[dict[str, Tensor]], None], message: str) -> None:
    edit_weights(folder, change)
    with pytest.raises(CheckpointError, match=message):
        GHN.from_pretrained(folder)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_incomplete_folder_is_refused(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(PredictorNotFoundError, match=missing):
        GHN.from_pretrained(folder)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PredictorNotFoundError, match="No predictor at"):
        GHN.from_pretrained(f"local-dir:{tmp_path / 'nowhere'}")
    with pytest.raises(UnknownInitializerError, match="hf-hub"):
        GHN.from_pretrained("ftp:somewhere")


def test_unwritable_place_leaves_nothing(ghn: GHN, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises((OutputError, OSError)):
        ghn.save_pretrained(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "a file"


@pytest.mark.parametrize("place", [0.3, 0.6, 0.999])
def test_a_flipped_bit_is_noticed(folder: Path, place: float) -> None:
    """The lowest bit of one float: everything fits and is finite, and only the hash tells."""
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start + int(place * (len(content) - start)) // 4 * 4] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not the file that was saved.*fetch it again"):
        GHN.from_pretrained(folder)


def test_exchanged_weights_are_noticed(folder: Path, tmp_path: Path) -> None:
    GHN.new(CONFIG, seed=9).save_pretrained(tmp_path / "other")
    shutil.copyfile(tmp_path / "other" / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="damaged or exchanged"):
        GHN.from_pretrained(folder)


def test_folders_of_earlier_versions_have_no_hash_and_load(folder: Path) -> None:
    edit_config(folder, lambda record: record.pop("weights_sha256"))
    assert GHN.from_pretrained(folder).config == CONFIG


def test_the_hash_is_that_of_the_file(folder: Path) -> None:
    record = json.loads((folder / "config.json").read_text())
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert record["weights_sha256"] == {"model.safetensors": digest}
    assert GHN.from_pretrained(folder).provenance["sha256"] == digest


def test_built_in_predictors_carry_their_hash() -> None:
    for path in BUILTIN_FOLDER.glob("*/config.json"):
        assert json.loads(path.read_text())["weights_sha256"].keys() == {"model.safetensors"}
        GHN.from_pretrained(path.parent)


@pytest.mark.parametrize(
    "hashes",
    [
        {},
        [],
        "0" * 64,
        {"model.safetensors": "0" * 63},
        {"model.safetensors": None},
        {"../model.safetensors": "0" * 64},
        {"/etc/passwd": "0" * 64},
        {"config.json": "0" * 64},
        {"model.safetensors\n": "0" * 64},
    ],
)
def test_hashes_of_another_form_are_refused(folder: Path, hashes: object) -> None:
    edit_config(folder, lambda record: record.update(weights_sha256=hashes))
    with pytest.raises(CheckpointError, match=r"config\.json: weights_sha256 must map"):
        GHN.from_pretrained(folder)


# Shards


@pytest.fixture
def shards(ghn: GHN, tmp_path: Path) -> Path:
    ghn.save_pretrained(tmp_path / "shards", max_shard_size=30_000)
    return tmp_path / "shards"


def test_shards_round_trip(ghn: GHN, shards: Path) -> None:
    names = sorted(path.name for path in shards.glob("*.safetensors"))
    assert len(names) > 2
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"
    index = json.loads((shards / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == ghn.state_dict().keys()
    read = GHN.from_pretrained(shards)
    assert list(read.state_dict()) == list(ghn.state_dict())
    for name, tensor in ghn.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name
    assert len(str(read.provenance["sha256"])) == 64


def test_faulty_shards_are_refused(shards: Path) -> None:
    first, second = sorted(shards.glob("*.safetensors"))[:2]
    content = first.read_bytes()
    first.write_bytes(content[:-4] + bytes([content[-4] ^ 1]) + content[-3:])
    with pytest.raises(CheckpointError, match=f"{first.name} is not the file that was saved"):
        GHN.from_pretrained(shards)
    shutil.copyfile(second, first)
    with pytest.raises(CheckpointError, match=r"missing: .*in more than one file: "):
        GHN.from_pretrained(shards)
    first.unlink()
    with pytest.raises(PredictorNotFoundError, match=first.name):
        GHN.from_pretrained(shards)


# Model cards


def test_the_card_of_a_converted_predictor_claims_no_licence(tmp_path: Path) -> None:
    GHN.from_file(CHECKPOINTS / "ghn3_micro_joblib.pt").save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "unknown"
    assert card.data.pipeline_tag == "graph-ml"
    assert {"hf_paraminit", "weight-initialization", "ghn3", "graph-hypernetwork"} <= set(card.data.tags)
    assert "Converted from: ghn3_micro_joblib.pt, SHA-256 " in card.text
    assert "Licence of the source: not recorded" in card.text


def test_the_card_says_what_the_metadata_record(ghn: GHN, tmp_path: Path) -> None:
    table = {"caption": "Coverage, %", "columns": ["model", "elements"], "rows": [["resnet18", 100.0]]}
    facts = {
        "title": "Mine",
        "license": "mit",
        "sources": ["arXiv 2303.04143"],
        "coverage": [table],
        "metrics": [table],
    }
    ghn.metadata["card"] = facts
    ghn.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "mit"
    assert card.text.count("| resnet18 | 100.0 |") == 2
    assert "## Sources\n\n* arXiv 2303.04143\n" in card.text
    assert GHN.from_pretrained(tmp_path).metadata["card"] == facts


@pytest.mark.parametrize(
    "card",
    [
        {"titel": "x"},
        7,
        {"metrics": [{"caption": "c"}]},
        {"metrics": 3},
        {"coverage": [{"caption": "c", "columns": ["a"], "rows": [[1, 2]]}]},
    ],
)
def test_metadata_that_make_no_card_are_refused(ghn: GHN, tmp_path: Path, card: object) -> None:
    ghn.metadata["card"] = card
    with pytest.raises(CheckpointError, match=r"metadata\['card'\]"):
        ghn.save_pretrained(tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []


def test_metadata_that_are_no_object_are_refused(folder: Path) -> None:
    edit_config(folder, lambda record: record.update(metadata=[1]))
    with pytest.raises(CheckpointError, match="metadata must be an object"):
        GHN.from_pretrained(folder)


# The Hub


def test_push_to_hub(hub: HubServer, tmp_path: Path) -> None:
    """From the network itself, in shards; then a spoiled one, of which nothing arrives."""
    done = hub.run(PUSH.format(file=str(CHECKPOINTS / "ghn3_micro_joblib.pt"), folder=str(tmp_path / "mine")), **TOKEN)
    assert done.returncode == 0, done.stderr[-2000:]
    commit, saved, error = done.stdout.splitlines()
    assert "NaN" in error
    assert set(hub.repositories) == {"me/mine", "me/saved"}
    mine = hub.repositories["me/mine"]
    assert mine.is_private
    assert mine.messages == ["By hand"]
    assert mine.refs["trial"] == commit
    names = set(mine.commits[commit])
    assert {"config.json", "README.md", "model.safetensors.index.json"} <= names
    assert sum("-of-" in name for name in names) > 2
    assert 'init="hf-hub:me/mine"' in mine.commits[commit]["README.md"].decode()
    assert hub.repositories["me/saved"].refs["main"] == saved
    assert (tmp_path / "mine" / "config.json").is_file()


def test_hub_repositories_and_files(hub: HubServer, folder: Path) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    commit = hub.add("me/predictor", files)
    official = hub.add("lab/ghn3", {"ghn3micro.pt": (CHECKPOINTS / "ghn3_micro_joblib.pt").read_bytes()})
    shutil.rmtree(folder)
    done = hub.run(
        "from hf_paraminit import GHN\n"
        "for source, options in (('me/predictor', {}), ('hf-hub:me/predictor@main', {}),\n"
        "                        ('lab/ghn3', {'filename': 'ghn3micro.pt'})):\n"
        "    network = GHN.from_pretrained(source, **options)\n"
        "    print(network.config.hidden_dim, network.provenance['predictor'], network.provenance['revision'])\n"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    own = f"8 me/predictor {commit}"
    assert done.stdout.splitlines() == [own, own, f"8 lab/ghn3/ghn3micro.pt {official}"]

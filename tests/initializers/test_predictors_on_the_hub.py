"""Predictors by name and by repository, through a local Hub: the whole way from `init=` to written weights."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hub_server import HubServer, closed_endpoint

from hf_paraminit import initialize
from hf_paraminit.errors import CheckpointError, PredictorNotFoundError
from hf_paraminit.ghn.config import GHNConfig
from hf_paraminit.ghn.model import GHN

OFFICIAL = "SamsungSAILMontreal/ghn3"
CONFIG = GHNConfig(hidden_dim=8, num_layers=1, num_heads=2, max_shape=(8, 8, 11, 11), num_classes=10)
CHECKPOINT = Path(__file__).parents[1] / "golden" / "checkpoints" / "ghn3_micro_joblib.pt"

USE = """
import json, timm, hf_paraminit
try:
    model = timm.create_model("resnet18", num_classes=10, init={init!r}, init_kwargs={kwargs!r})
    report = model._hf_paraminit
    answer = dict(predicted=len(report.predicted), predictor=report.predictor, revision=report.revision,
                  sha256=report.sha256, total=float(sum(p.double().sum() for p in model.parameters())))
except hf_paraminit.ParamInitError as error:
    answer = dict(error=str(error))
print(json.dumps(answer))
"""

PUSH = f"""
from hf_paraminit import GHN
GHN.from_pretrained({str(CHECKPOINT)!r}).push_to_hub("me/my-ghn", token="hf_x")
again = GHN.from_pretrained("me/my-ghn")
print(again.config.hidden_dim, again.provenance["predictor"])
"""


def use(hub: HubServer, init: str, **options: Any) -> dict[str, Any]:
    environment = options.pop("environment", {})
    done = hub.run(USE.format(init=init, kwargs=options), **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def commit(hub: HubServer) -> str:
    return hub.add(OFFICIAL, {"ghn3tm8.pt": CHECKPOINT.read_bytes()})


def test_an_official_variant_is_downloaded_once_and_reported(hub: HubServer, commit: str) -> None:
    first = use(hub, "ghn3:tm8")
    assert first["predicted"] == 62
    assert (first["predictor"], first["revision"]) == (f"{OFFICIAL}/ghn3tm8.pt", commit)
    hub.requests.clear()
    assert use(hub, "ghn3:tm8") == first
    assert not any("resolve" in request for request in hub.requests)


def test_a_cached_variant_works_offline_and_a_missing_one_names_three_ways_out(hub: HubServer, commit: str) -> None:
    online = use(hub, "ghn3:tm8")
    assert use(hub, "GHN3:tm8", environment={"HF_HUB_OFFLINE": "1"}) == online
    error = use(hub, "ghn3:xlm16", environment={"HF_HUB_OFFLINE": "1"})["error"]
    assert "ghn3xlm16.pt" in error
    for way_out in ("(1)", "(2)", "(3)", 'init="ghn3"', "local-dir:"):
        assert way_out in error


def test_a_pushed_predictor_is_found_by_repository_and_pinned_revision(hub: HubServer) -> None:
    pushed = hub.run(PUSH)
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.split() == ["8", "me/my-ghn"]
    by_branch = use(hub, "hf-hub:me/my-ghn")
    assert by_branch["predicted"] == 62
    by_commit = use(hub, f"hf-hub:me/my-ghn@{by_branch['revision']}")
    assert by_commit == by_branch


def test_a_repository_that_is_not_there_is_one_clear_error(hub: HubServer) -> None:
    assert "me/none" in use(hub, "hf-hub:me/none")["error"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    GHN.new(CONFIG, seed=0).save_pretrained(tmp_path / "predictor")
    return tmp_path / "predictor"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_moved_branch_is_followed_and_a_pinned_commit_needs_no_request(hub: HubServer, folder: Path) -> None:
    old_commit = hub.add("me/ghn", files_of(folder))
    old = use(hub, "hf-hub:me/ghn")
    GHN.new(CONFIG, seed=1).save_pretrained(folder)
    new_commit = hub.add("me/ghn", files_of(folder))
    new = use(hub, "HF-Hub:me/ghn@main")
    assert (old["revision"], new["revision"]) == (old_commit, new_commit)
    assert old["total"] != new["total"]
    hub.requests.clear()
    assert use(hub, f"hf-hub:me/ghn@{old_commit}") == old
    assert hub.requests == []
    assert use(hub, "hf-hub:me/ghn", environment={"HF_HUB_OFFLINE": "1"}) == new
    assert use(hub, "hf-hub:me/ghn", environment={"HF_ENDPOINT": closed_endpoint()}) == new


def test_local_files_only(hub: HubServer, folder: Path) -> None:
    commit = hub.add("me/ghn", files_of(folder))
    load = (
        "from hf_paraminit import GHN, PredictorNotFoundError\n"
        "try:\n"
        "    GHN.from_pretrained('me/ghn', local_files_only=True)\n"
        "except PredictorNotFoundError as error:\n"
        "    print('local-dir:PATH' in str(error))\n"
        "GHN.from_pretrained('me/ghn')\n"
        "print(GHN.from_pretrained('me/ghn', local_files_only=True).provenance['revision'])"
    )
    done = hub.run(load)
    assert done.stdout.split() == ["True", commit], done.stderr


def test_a_repository_whose_files_do_not_belong_together(hub: HubServer, folder: Path) -> None:
    """Uploaded by hand, config.json of one training and weights of another: they fit, and only the hash tells."""
    config = (folder / "config.json").read_bytes()
    GHN.new(CONFIG, seed=1).save_pretrained(folder)
    hub.add("me/mixed", {**files_of(folder), "config.json": config})
    assert "is not the file that was saved" in use(hub, "hf-hub:me/mixed")["error"]


def test_a_folder_by_name(folder: Path) -> None:
    model = timm.create_model("resnet18", num_classes=10, init=f"local-dir:{folder}")
    report = model._hf_paraminit
    assert len(report.predicted) == 62
    assert report.predictor == str(folder)
    assert report.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    again = timm.create_model("resnet18", num_classes=10, init="ghn3", init_kwargs={"source": str(folder)})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-4] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def widen(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"hidden_dim": 8', '"hidden_dim": 16'))


@pytest.mark.parametrize(
    ("damage", "kind", "said"),
    [
        (shutil.rmtree, PredictorNotFoundError, "No predictor at"),
        (lambda folder: (folder / "model.safetensors").unlink(), PredictorNotFoundError, "no weights file"),
        (lambda folder: (folder / "config.json").write_text("[]"), CheckpointError, "does not describe a predictor"),
        (widen, CheckpointError, "does not fit the network"),
        (cut, CheckpointError, "not a readable safetensors file"),
        (flip_a_bit, CheckpointError, "not the file that was saved"),
    ],
)
def test_broken_folders_leave_the_model_as_it_was(
    folder: Path, damage: Callable[[Path], object], kind: type[Exception], said: str
) -> None:
    damage(folder)
    with pytest.raises(kind, match=said):
        timm.create_model("test_vit", init=f"local-dir:{folder}")
    model = timm.create_model("test_vit")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(kind, match=said):
        initialize(model, f"local-dir:{folder}")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

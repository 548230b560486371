"""A hyper-representation through a local Hub: pushed, found by name and by commit, and what goes wrong on the way."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
from hub_server import HubServer
from tiny_representation import representation_of

USE = """
import json, timm, hf_paraminit
try:
    model = timm.create_model("test_resnet", num_classes={classes}, init={init!r}, init_kwargs={kwargs!r})
    report = model._hf_paraminit
    answer = dict(predicted=len(report.predicted), kept=sorted(report.kept), initializer=report.initializer,
                  predictor=report.predictor, revision=report.revision, sha256=report.sha256,
                  total=float(sum(p.double().sum() for n, p in model.named_parameters() if n in report.predicted)))
except hf_paraminit.ParamInitError as error:
    answer = dict(error=str(error))
print(json.dumps(answer))
"""

PUSH = """
from hf_paraminit.hyperrep.model import HyperRepresentation
made = HyperRepresentation.from_pretrained({folder!r})
made.push_to_hub("me/my-zoo", token="hf_x")
again = HyperRepresentation.from_pretrained("me/my-zoo")
print(len(again.anchors), again.config.architecture, again.provenance["predictor"])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    representation = representation_of(
        lambda: timm.create_model("test_resnet", num_classes=4), token_dim=144, architecture="test_resnet"
    )
    representation.save_pretrained(tmp_path / "predictor")
    return tmp_path / "predictor"


def use(hub: HubServer, init: str, *, classes: int = 4, **settings: Any) -> dict[str, Any]:
    environment = settings.pop("environment", {})
    done = hub.run(USE.format(init=init, kwargs=settings, classes=classes), **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_pushed_representation_is_found_by_repository_and_by_commit(hub: HubServer, folder: Path) -> None:
    pushed = hub.run(PUSH.format(folder=str(folder)))
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.split() == ["2", "test_resnet", "me/my-zoo"]
    by_branch = use(hub, "hf-hub:me/my-zoo", seed=3)
    assert by_branch["predicted"] > 0
    assert by_branch["predictor"] == "me/my-zoo"
    assert "layer1.0.conv1.weight" not in by_branch["kept"]
    by_commit = use(hub, f"hf-hub:me/my-zoo@{by_branch['revision']}", seed=3, environment={"HF_HUB_OFFLINE": "1"})
    assert by_commit == by_branch
    as_source = use(hub, "hyperrep-sample", source="hf-hub:me/my-zoo", seed=3)
    assert as_source["total"] == by_branch["total"]
    assert use(hub, "hf-hub:me/my-zoo", seed=4)["total"] != by_branch["total"]
    assert {"fc.weight", "fc.bias"} < set(use(hub, "hf-hub:me/my-zoo", classes=7)["kept"])


def test_a_representation_that_is_not_there_or_is_damaged_is_one_clear_error(hub: HubServer, folder: Path) -> None:
    assert "me/none" in use(hub, "hyperrep-sample", source="hf-hub:me/none")["error"]
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.add("me/cut", {**files, "model.safetensors": files["model.safetensors"][:-100]})
    assert "model.safetensors" in use(hub, "hf-hub:me/cut")["error"]

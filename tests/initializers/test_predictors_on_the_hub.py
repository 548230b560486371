"""Predictors by name and by repository, through a local Hub: the whole way from `init=` to written weights."""

import json
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer

OFFICIAL = "SamsungSAILMontreal/ghn3"
CHECKPOINT = Path(__file__).parents[1] / "golden" / "checkpoints" / "ghn3_micro_joblib.pt"

USE = """
import json, timm, hf_paraminit
try:
    model = timm.create_model("resnet18", num_classes=10, init={init!r}, init_kwargs={kwargs!r})
    report = model._hf_paraminit
    answer = dict(predicted=len(report.predicted), predictor=report.predictor, revision=report.revision,
                  sha256=report.sha256, total=float(sum(p.double().sum() for p in model.parameters())))
except hf_paraminit.PredictorNotFoundError as error:
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

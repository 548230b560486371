import copy
import json
import pickle

import pytest
from name_hash import name_hash_values
from torch import nn

from hf_paraminit.initializers.initialize import initialize
from hf_paraminit.initializers.report import InitReport


@pytest.fixture
def report() -> InitReport:
    return InitReport(
        initializer="ghn3:tm8",
        predicted={"conv.weight": "(8, 3, 3, 3) torch.float32"},
        kept={f"blocks.{i}.scale": "not in the graph" for i in range(5)} | {"fc.bias": "class layer"},
        refused={"bn.running_mean": "buffers are never written"},
        coverage_tensors=1 / 7,
        coverage_elements=0.875,
        predictor="hf-hub:org/repo",
        revision="abc",
        sha256="00ff",
        seed=3,
        seconds={"predict": 0.25},
        notes=("first note",),
    )


def test_survives_json(report: InitReport) -> None:
    assert InitReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_text_groups_by_reason_and_aligns_labels(report: InitReport) -> None:
    lines = str(report).splitlines()
    assert (
        lines[0] == "ghn3:tm8: 1 predicted, 6 kept, 1 refused (14.3% of the offered tensors, 87.5% of their elements)"
    )
    assert lines[1] == "  kept          5  not in the graph: blocks.0.scale, blocks.1.scale, blocks.2.scale and 2 more"
    assert lines[2] == "  kept          1  class layer: fc.bias"
    assert lines[3] == "  refused       1  buffers are never written: bn.running_mean"
    assert lines[4] == "  predictor  hf-hub:org/repo@abc (sha256 00ff)"
    assert lines[5:] == ["  seed       3", "  seconds    predict 0.250", "  note       first note"]


def test_text_of_nothing_and_of_a_skipped_model() -> None:
    assert str(InitReport()) == "no initializer: nothing done"
    assert InitReport(initializer="ghn3", skipped_reason="meta").summary == "ghn3: skipped (meta)"


def test_stays_with_a_copied_and_a_pickled_model_but_not_in_the_state_dict() -> None:
    model = nn.Linear(2, 2)
    before = set(model.state_dict())
    report = initialize(model, name_hash_values)
    assert model._hf_paraminit is report
    assert copy.deepcopy(model)._hf_paraminit == report
    assert pickle.loads(pickle.dumps(model))._hf_paraminit == report
    assert set(model.state_dict()) == before

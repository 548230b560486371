"""Kept results: computed once, and again when anything that decides them is another."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_paraminit.evaluation import kept_results
from hf_paraminit.evaluation.kept_results import KeptResults, tensors_digest
from hf_paraminit.io.run_store import RunStore

CELL = {"kind": "square", "number": 3}


class Square:
    """Counts how often it is computed."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, Any]:
        self.calls += 1
        return {"value": 9}


def test_a_result_is_computed_once_and_is_one_line(tmp_path: Path) -> None:
    square = Square()
    first = KeptResults(RunStore(tmp_path), data="a").result(CELL, square, start="b")
    second = KeptResults(RunStore(tmp_path), data="a").result(CELL, square, start="b")
    assert square.calls == 1
    assert first == second == {"key": first["key"], "status": "done", **CELL, "value": 9}
    assert [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()] == [first]


@pytest.mark.parametrize(
    ("shared", "cell", "facts"),
    [
        ({"data": "other"}, CELL, {"start": "b"}),
        ({"data": "a"}, {**CELL, "number": 4}, {"start": "b"}),
        ({"data": "a"}, CELL, {"start": "other"}),
    ],
)
def test_another_fact_is_another_key(
    tmp_path: Path, shared: dict[str, str], cell: dict[str, Any], facts: dict[str, str]
) -> None:
    square = Square()
    KeptResults(RunStore(tmp_path), data="a").result(CELL, square, start="b")
    KeptResults(RunStore(tmp_path), **shared).result(cell, square, **facts)
    assert square.calls == 2
    assert len(RunStore(tmp_path).records) == 2


def test_results_of_another_version_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    square = Square()
    KeptResults(RunStore(tmp_path)).result(CELL, square)
    changed = {**kept_results.versions(), "torch": "0.0"}
    monkeypatch.setattr(kept_results, "versions", lambda: changed)
    KeptResults(RunStore(tmp_path)).result(CELL, square)
    assert square.calls == 2


def test_an_error_is_raised_and_nothing_is_kept(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        KeptResults(RunStore(tmp_path)).result(CELL, fail)
    assert not RunStore(tmp_path).records
    assert KeptResults(RunStore(tmp_path)).result(CELL, Square())["value"] == 9


def test_a_digest_is_of_names_types_shapes_and_values_and_of_nothing_else() -> None:
    values = torch.arange(12.0).reshape(1, 3, 2, 2)
    tensors = {"weight": values, "count": torch.tensor(3), "flag": torch.tensor(True)}
    copied = {name: tensor.clone() for name, tensor in tensors.items()}
    copied["weight"] = torch.nn.Parameter(values.to(memory_format=torch.channels_last))
    assert tensors_digest(copied) == tensors_digest(tensors)
    others = [
        {**tensors, "weight": values + 1},
        {**tensors, "weight": values.reshape(3, 4)},
        {**tensors, "weight": values.to(torch.float64)},
        {**tensors, "count": torch.tensor(4)},
        {"bias": values, "count": torch.tensor(3), "flag": torch.tensor(True)},
    ]
    assert len({tensors_digest(other) for other in [tensors, *others]}) == len(others) + 1

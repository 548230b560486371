import csv
import json
import math
from pathlib import Path

import pytest

from hf_paraminit.evaluation.split_table import flat_rows, split_rows, write_rows, write_summary


def record(network: str, top1: float | None, *, group: str = "test", status: str = "done") -> dict[str, object]:
    results = {"accuracy": {"top1": top1}} if status == "done" else {"error": "E"}
    return {"init": "ghn3", "group": group, "network": network, "seed": 0, "status": status, **results}


RECORDS = [
    record("0", 10.0),
    record("1", 20.0),
    record("2", 60.0),
    record("3", None, status="failed"),
    record("4", math.nan),
    record("0", 5.0, group="deep"),
]


def test_mean_errors_and_the_best_by_group() -> None:
    test, deep = split_rows(RECORDS, ["top1"], field="accuracy")
    assert (test.group, test.count, test.failed) == ("test", 3, 2)
    assert test.mean == pytest.approx(30)
    assert test.deviation == pytest.approx(math.sqrt(700))
    assert test.standard_error == pytest.approx(math.sqrt(700 / 3))
    assert (test.best, test.best_network) == (60.0, "2")
    assert (deep.group, deep.mean) == ("deep", 5.0)
    assert math.isnan(deep.standard_error)


def test_a_group_without_any_value_has_none() -> None:
    (row,) = split_rows([record("0", None, status="failed")], ["top1"], field="accuracy")
    assert (row.count, row.failed) == (0, 1)
    assert math.isnan(row.mean)


def test_tables_are_written_flat(tmp_path: Path) -> None:
    write_rows(tmp_path / "networks.csv", flat_rows(RECORDS, ["accuracy"]))
    rows = list(csv.DictReader((tmp_path / "networks.csv").open()))
    assert [row["accuracy_top1"] for row in rows] == ["10.0", "20.0", "60.0", "", "nan", "5.0"]
    assert rows[3]["error"] == "E"


def test_a_summary_is_json_without_nan(tmp_path: Path) -> None:
    write_summary(tmp_path / "summary.json", split_rows(RECORDS, ["top1"], field="accuracy"), {"data": "digits"})
    content = json.loads((tmp_path / "summary.json").read_text())
    assert content["settings"] == {"data": "digits"}
    assert content["rows"][1]["standard_error"] is None

"""Coverage records and the sweep: laws, failures, resumption, and the table that is checked in."""

import csv
import json
import os
import signal
import statistics
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import hf_paraminit
from hf_paraminit.errors import InitializerConfigError, OutputError, ParamInitError
from hf_paraminit.evaluation import coverage
from hf_paraminit.evaluation.coverage import Built, Candidate, Coverage, measure, read_state, sweep
from hf_paraminit.evaluation.coverage_table import markdown, sorted_records, summaries, write_csv, write_json

SETTINGS = {"init": "ghn3", "mode": "native"}
TABLE = Path(__file__).parents[2] / "benchmarks" / "coverage"


def build_timm(candidate: Candidate) -> Built:
    """Build a model; some names make the process die or the host fail."""
    if candidate.model == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if candidate.model == "broken":
        raise LookupError("no such\nlayer")
    with torch.device("meta"):
        return Built(module=timm.create_model(candidate.model))


def of_timm(*models: str) -> list[Candidate]:
    return [Candidate(model=model, source="timm", head="default") for model in models]


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure without starting processes, which take seconds."""

    def measured(waiting, jobs, work):
        yield from map(work, waiting)

    monkeypatch.setattr(coverage, "_measured", measured)


def run(folder: Path, *models: str, **options) -> list[Coverage]:
    options = {"settings": SETTINGS, "jobs": 1, **options}
    candidates = of_timm(*models)
    return list(sweep(candidates, build_timm, init="ghn3", mode="native", state=folder / "state.jsonl", **options))


# --- One model -------------------------------------------------------------------------------------------------------


def test_a_record_agrees_with_what_initialize_reports() -> None:
    (candidate,) = of_timm("test_vit")
    record = measure(candidate, build_timm, init="ghn3", mode="native")
    model = timm.create_model("test_vit")
    report = hf_paraminit.initialize(model, "ghn3", mode="native")
    assert (record.status, record.error, record.is_valid) == ("ok", "", True)
    assert record.covered_tensors == len(report.predicted) < record.tensors == len(list(model.parameters()))
    assert record.share == pytest.approx(report.coverage_elements, abs=0)
    kept = Counter()
    for name, parameter in model.named_parameters():
        if name in report.kept:
            kept[report.kept[name]] += parameter.numel()
    assert record.kept == dict(kept)
    assert sum(kept.values()) == record.elements - record.covered_elements


@pytest.mark.parametrize("mode", ["native", "auto", "compat"])
def test_the_modes(mode: str) -> None:
    (candidate,) = of_timm("test_resnet")
    record = measure(candidate, build_timm, init="ghn3", mode=mode)
    assert record.mode == ("native" if mode == "native" else "compat")
    assert record.auto_mode == "compat"


def test_groups_bound_what_is_predicted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {"a": (3, 2), "b": (4,), "c": (100,), "d": (1,), "e": ()}
    monkeypatch.setattr(coverage, "GROUP_ELEMENTS", 10)
    assert list(coverage._groups(shapes, shapes)) == [["a", "b"], ["c"], ["d", "e"]]
    (candidate,) = of_timm("test_resnet")
    monkeypatch.setattr(coverage, "GROUP_ELEMENTS", 10_000)
    in_groups = measure(candidate, build_timm, init="ghn3", mode="native")
    monkeypatch.undo()
    at_once = measure(candidate, build_timm, init="ghn3", mode="native")
    assert in_groups.covered_tensors == at_once.covered_tensors > 10
    assert in_groups.is_valid


@pytest.mark.parametrize("fault", [float("nan"), float("inf"), "shape"])
def test_unusable_values_are_errors(fault: float | str, monkeypatch: pytest.MonkeyPatch) -> None:
    ghn = coverage.find_hypernetwork("ghn3")
    honest = type(ghn).predict

    def faulty(self, *arguments, **options):
        values = honest(self, *arguments, **options)
        name = next(iter(values))
        if fault == "shape":
            values[name] = values[name][:-1]
        else:
            values[name].view(-1)[-1] = fault
        return values

    monkeypatch.setattr(type(ghn), "predict", faulty)
    (candidate,) = of_timm("test_resnet")
    record = measure(candidate, build_timm, init="ghn3", mode="native")
    assert record.status == "error"
    assert not record.is_valid
    assert "conv1.0.weight (1 in all)" in record.error


def test_a_failing_host_is_a_record() -> None:
    (candidate,) = of_timm("broken")
    record = measure(candidate, build_timm, init="ghn3", mode="native")
    assert record.status == "error"
    assert record.error == "LookupError: no such layer"
    assert record.share == 0.0


def test_a_long_message_is_cut() -> None:
    (candidate,) = of_timm("broken")
    assert len(Coverage.failed(candidate, "word " * 1000).error) < 600


def test_an_initializer_without_graphs_is_refused() -> None:
    with pytest.raises(InitializerConfigError, match="computational graph"):
        coverage.find_hypernetwork(lambda model, names: {})


def test_models_with_inputs_of_their_own() -> None:
    def build(candidate: Candidate) -> Built:
        module = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 4))
        return Built(module=module, example_inputs=torch.zeros(2, 3, dtype=torch.int64))

    (candidate,) = of_timm("tokens")
    assert measure(candidate, build, init="ghn3", mode="native").share == 1.0


# --- Sweep -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_this_process")
def test_finished_models_are_never_measured_twice(tmp_path: Path) -> None:
    first = run(tmp_path, "test_resnet", "broken")
    assert [record.status for record in first] == ["ok", "error"]
    kept = (tmp_path / "state.jsonl").read_text()
    assert run(tmp_path, "test_resnet", "broken") == []
    assert (tmp_path / "state.jsonl").read_text() == kept
    assert [record.model for record in run(tmp_path, "test_resnet", "broken", retry_failed=True)] == ["broken"]
    assert {record.model for record in read_state(tmp_path / "state.jsonl", SETTINGS)} == {"test_resnet", "broken"}


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_process_costs_its_own_model_only(tmp_path: Path, jobs: int) -> None:
    found = run(tmp_path, "killed", "test_resnet", jobs=jobs)
    assert {record.model: record.status for record in found} == {"killed": "error", "test_resnet": "ok"}
    assert next(record for record in found if record.model == "killed").error == coverage.DIED


@pytest.mark.usefixtures("in_this_process")
def test_an_interrupt_keeps_what_is_finished(tmp_path: Path) -> None:
    state = tmp_path / "state.jsonl"
    candidates = of_timm("test_resnet", "test_vit", "test_convnext")
    records = sweep(candidates, build_timm, init="ghn3", mode="native", settings=SETTINGS, state=state)
    first = next(records)
    with pytest.raises(KeyboardInterrupt):
        records.throw(KeyboardInterrupt)
    assert read_state(state, SETTINGS) == [first]
    assert [record.model for record in run(tmp_path, "test_resnet", "test_vit")] == ["test_vit"]


@pytest.mark.usefixtures("in_this_process")
def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path: Path) -> None:
    state = tmp_path / "state.jsonl"
    (record,) = run(tmp_path, "broken")
    with state.open("a") as file:
        file.write('{"model": "test_vit", "sour')
    assert read_state(state, SETTINGS) == [record]
    assert [found.model for found in run(tmp_path, "broken", "test_resnet")] == ["test_resnet"]
    assert [found.model for found in read_state(state, SETTINGS)] == ["broken", "test_resnet"]


@pytest.mark.usefixtures("in_this_process")
def test_other_settings_are_refused(tmp_path: Path) -> None:
    run(tmp_path, "broken")
    before = (tmp_path / "state.jsonl").read_bytes()
    with pytest.raises(ParamInitError, match="mode was 'native', is 'auto'"):
        run(tmp_path, "broken", settings={**SETTINGS, "mode": "auto"})
    assert (tmp_path / "state.jsonl").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"notes\n", b"{}\n", b'{"settings": {}}\n{"a": 1}\n', b"[]\n", b"\xff\n"])
def test_a_file_that_is_no_state_is_refused_and_left(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.jsonl").write_bytes(content)
    with pytest.raises(ParamInitError, match="no state of a coverage sweep"):
        run(tmp_path, "broken", settings={})
    assert (tmp_path / "state.jsonl").read_bytes() == content


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        run(tmp_path / "file", "broken")


# --- Table -----------------------------------------------------------------------------------------------------------


def a_record(model: str, share: float, **fields) -> Coverage:
    return Coverage(
        model=model, source="timm", head="default", status="ok", mode="native", auto_mode="compat", elements=1000,
        covered_elements=round(1000 * share), is_valid=True, kept={"a | b": 1000 - round(1000 * share)}, **fields,
    )  # fmt: skip


def test_csv_and_json_agree(tmp_path: Path) -> None:
    records = sorted_records(
        [a_record("b", 0.5), Coverage.failed(of_timm("a")[0], 'a "quoted", text'), a_record("c", 1)]
    )
    write_csv(records, tmp_path / "t.csv")
    write_json(records, SETTINGS, tmp_path / "t.json")
    written = json.loads((tmp_path / "t.json").read_text())
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == [row["model"] for row in written["models"]] == ["a", "b", "c"]
    for row, line in zip(rows, written["models"], strict=True):
        assert row.keys() == line.keys()
        assert json.loads(row.pop("kept")) == line.pop("kept")
        assert float(row.pop("share")) == line.pop("share")
        assert row == {name: str(value) for name, value in line.items()}
    assert written["settings"] == SETTINGS


def test_summary_and_page() -> None:
    records = [
        a_record("low", 0.5),
        a_record("full", 1.0),
        a_record("fair", 0.95),
        Coverage.failed(*of_timm("a"), "why"),
    ]
    summary = summaries(records)["timm"]
    assert (summary["models"], summary["ok"], summary["errors"]) == (4, 3, 1)
    assert (summary["median_share"], summary["least_share"], summary["full"], summary["low"]) == (0.95, 0.5, 1, 1)
    page = markdown(records, SETTINGS, "paraminit coverage '*'")
    assert "| low | timm | 50.00% | 50.0% a / b |" in page
    assert "| a | timm | default | why |" in page
    assert "| full |" not in page
    assert markdown([], SETTINGS, "").count("None.") == 3


# --- The table that is checked in ------------------------------------------------------------------------------------

# What cannot be measured, and why. None of it is a fault of tracing.
NOT_MEASURED = {"DinatForImageClassification": "natten", "DinatBackbone": "natten"}


@pytest.fixture(scope="module")
def table() -> dict[str, list[dict[str, str]]]:
    with (TABLE / "coverage.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {source: [row for row in rows if row["source"] == source] for source in ("timm", "transformers")}


@pytest.mark.parametrize("source", ["timm", "transformers"])
def test_the_table_meets_its_targets(table: dict[str, list[dict[str, str]]], source: str) -> None:
    rows = table[source]
    ok = [row for row in rows if row["status"] == "ok"]
    assert {row["model"] for row in rows} - {row["model"] for row in ok} <= NOT_MEASURED.keys()
    for row in rows:
        assert row["status"] == "ok" or NOT_MEASURED[row["model"]] in row["error"]
    assert all(row["is_valid"] == "True" for row in ok)
    assert statistics.median(float(row["share"]) for row in ok) >= 0.995
    assert [row["model"] for row in ok if float(row["share"]) < 0.9] == []


def test_the_table_has_every_model_of_timm(table: dict[str, list[dict[str, str]]]) -> None:
    measured = json.loads((TABLE / "coverage.jsonl").open().readline())["settings"]["timm"]
    if measured != timm.__version__:
        pytest.skip(f"the table was made with timm {measured}, installed is {timm.__version__}")
    assert sorted(row["model"] for row in table["timm"]) == sorted(timm.list_models())


def test_the_page_and_the_state_belong_to_the_table(table: dict[str, list[dict[str, str]]]) -> None:
    lines = (TABLE / "coverage.jsonl").read_text().splitlines()
    records = sorted_records(read_state(TABLE / "coverage.jsonl", json.loads(lines[0])["settings"]))
    rows = [*table["timm"], *table["transformers"]]
    assert [record.model for record in records] == [row["model"] for row in rows]
    assert [f"{record.share:.6f}" for record in records] == [row["share"] for row in rows]
    page = (TABLE / "README.md").read_text()
    for source, summary in summaries(records).items():
        assert f"| {source} | {summary['models']:,} | {summary['ok']:,} |" in page

"""One prediction for all processes of a run: two gloo processes go through every case one after another."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import hf_paraminit
from hf_paraminit.ghn.config import GHNConfig
from hf_paraminit.ghn.model import GHN

SCRIPT = """
import hashlib, json, os, sys
import torch
import torch.distributed as dist
from torch import nn
import hf_paraminit
from hf_paraminit.errors import ParamInitError
from hf_paraminit.ghn.model import GHN
from hf_paraminit.initializers.graph_hypernetwork import load_ghn

rank, size, rendezvous, folder, result = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
torch.set_num_threads(1)
torch.manual_seed(rank)  # every process draws other default weights
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
results = {}

def net(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))

def digest(model):
    flat = torch.cat([p.detach().double().flatten() for p in model.parameters()])
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()

def case(name, model, init, **options):
    before, calls = digest(model), len(seen)
    try:
        report = hf_paraminit.initialize(model, init, **options)
        outcome = {"predicted": list(report.predicted), "dtypes": sorted({str(p.dtype) for p in model.parameters()})}
    except (ParamInitError, RuntimeError) as error:
        outcome = {"error": f"{type(error).__name__}: {error}"}
    after = digest(model)
    results[name] = {**outcome, "weights": after, "changed": after != before, "calls": len(seen) - calls}

seen = []

def by_rank(model, names):
    seen.append(rank)
    return {name: torch.full(model.get_parameter(name).shape, 0.1 + rank) for name in names}

def with_nan(model, names):
    return {**by_rank(model, names), names[-1]: torch.full(model.get_parameter(names[-1]).shape, torch.nan)}

def failing(model, names):
    seen.append(rank)
    raise RuntimeError("only where it is called")

def in_eight_bits(model, names):
    return {name: value.to(torch.float8_e5m2) for name, value in by_rank(model, names).items()}

def scalar_and_empty(model, names):
    seen.append(rank)
    return {"scalar": torch.tensor(2.5 + rank), "empty": torch.empty(0)}

read = GHN.from_pretrained
def counted(*args, **options):
    seen.append(rank)
    return read(*args, **options)
GHN.from_pretrained = counted

case("predictor", net(), f"local-dir:{folder}")
results["predictor"]["cached"] = load_ghn.cache_info().currsize
case("predictor again", net(), f"local-dir:{folder}")
case("predictor that is not there", net(), f"local-dir:{folder}/none")
case("predictor on each", net(), f"local-dir:{folder}", distributed="off")
case("bfloat16", net().bfloat16(), by_rank)
case("float16", net().half(), by_rank)
case("other dtype on each", net().to([torch.float32, torch.bfloat16][rank % 2]), by_rank)
tied = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5)})
tied["head"].weight = tied["embedding"].weight
case("tied", tied, by_rank)
results["tied"]["still tied"] = tied["head"].weight is tied["embedding"].weight
case("values in eight bits", net(), in_eight_bits)
odd = nn.Module()
odd.scalar, odd.empty = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(0))
case("scalar and empty", odd, scalar_and_empty)
case("listed names", net(), by_rank, names=["3.bias"])
case("off", net(), by_rank, distributed="off")
case("NaN", net(), with_nan)
case("failing", net(), failing)
case("uneven", net(4 + rank), by_rank)
two = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
if rank == 0:
    two["b"].weight = two["a"].weight
case("tied on one", two, by_rank)
case("other names", net(), by_rank, names=["3.bias" if rank == 0 else "3.weight"])
if rank == 0:
    case("on meta on one", net(), by_rank)
else:  # which has no weights to compare
    try:
        hf_paraminit.initialize(net().to("meta"), by_rank)
    except ParamInitError as error:
        results["on meta on one"] = {"error": f"{type(error).__name__}: {error}"}
dist.new_group([0])
if rank == 0:  # the others do not take part
    case("part of the processes", net(), by_rank, distributed="off")
dist.barrier()
case("at the end", net(), by_rank)
with open(result, "w") as file:
    json.dump(results, file)
dist.barrier()
os._exit(0)  # without the interpreter's end, where gloo's threads now and then abort the process
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process saw, by case."""
    folder = tmp_path_factory.mktemp("replicas")
    config = GHNConfig(hidden_dim=8, num_heads=2, num_layers=1, max_shape=(8, 8, 11, 11), num_classes=4)
    GHN.new(config, seed=0).save_pretrained(folder / "predictor")
    root = Path(hf_paraminit.__file__).parents[1]
    places = [str(folder / "store"), str(folder / "predictor")]
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
    processes = [
        subprocess.Popen([*command, str(rank), "2", *places, str(folder / f"{rank}.json")], cwd=root) for rank in (0, 1)
    ]
    try:
        assert [process.wait(timeout=180) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def of(outcomes: list[dict[str, Any]], case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    first, second = (outcome[case] for outcome in outcomes)
    return first, second


@pytest.mark.parametrize(
    "case", ["bfloat16", "float16", "tied", "values in eight bits", "scalar and empty", "listed names", "at the end"]
)
def test_all_get_the_prediction_of_the_first(outcomes: list[dict[str, Any]], case: str) -> None:
    first, second = of(outcomes, case)
    assert "error" not in first
    assert (first["predicted"], first["dtypes"]) == (second["predicted"], second["dtypes"])
    assert first["weights"] == second["weights"] or case == "listed names"
    assert first["changed"]
    assert second["changed"]
    assert (first["calls"], second["calls"]) == (1, 0)


def test_only_the_first_reads_the_predictor(outcomes: list[dict[str, Any]]) -> None:
    for case in ("predictor", "predictor again"):
        first, second = of(outcomes, case)
        assert first["weights"] == second["weights"]
        assert first["predicted"] == second["predicted"] == ["0.weight", "0.bias", "3.weight", "3.bias"]
        assert (first["calls"], second["calls"]) == (int(case == "predictor"), 0)
    first, second = of(outcomes, "predictor")
    assert (first["cached"], second["cached"]) == (1, 0)


def test_off_predicts_on_each(outcomes: list[dict[str, Any]]) -> None:
    first, second = of(outcomes, "off")
    assert (first["calls"], second["calls"]) == (1, 1)
    assert first["weights"] != second["weights"]
    first, second = of(outcomes, "predictor on each")
    assert (first["calls"], second["calls"]) == (0, 1)  # the first had it in its cache
    assert first["weights"] == second["weights"] == outcomes[0]["predictor"]["weights"]


def test_each_keeps_its_own_dtype(outcomes: list[dict[str, Any]]) -> None:
    first, second = of(outcomes, "other dtype on each")
    assert (first["dtypes"], second["dtypes"]) == (["torch.float32"], ["torch.bfloat16"])
    assert first["changed"]
    assert second["changed"]


def test_tied_parameters_stay_tied_on_all(outcomes: list[dict[str, Any]]) -> None:
    assert all(outcome["still tied"] for outcome in of(outcomes, "tied"))


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("NaN", "3.bias: holds NaN"),
        ("failing", "RuntimeError: only where it is called"),
        ("predictor that is not there", "No predictor at"),
    ],
)
def test_a_failure_of_the_first_stops_all(outcomes: list[dict[str, Any]], case: str, parts: str) -> None:
    first, second = of(outcomes, case)
    assert parts in first["error"]
    assert second["error"].startswith("PredictionError: Initialization stopped because rank 0 failed with")
    assert parts in second["error"]
    assert not first["changed"]
    assert not second["changed"]


@pytest.mark.parametrize("case", ["uneven", "tied on one", "other names", "on meta on one"])
def test_models_that_differ_stop_all(outcomes: list[dict[str, Any]], case: str) -> None:
    first, second = of(outcomes, case)
    assert first["error"] == second["error"]
    assert "by rank 1 differ in name, shape or device" in first["error"]
    assert "distributed='off'" in first["error"]
    assert (first["calls"], second.get("calls", 0)) == (0, 0)
    assert not first["changed"]
    assert not second.get("changed")


def test_part_of_the_processes_can_predict_alone(outcomes: list[dict[str, Any]]) -> None:
    assert outcomes[0]["part of the processes"]["calls"] == 1
    assert "part of the processes" not in outcomes[1]

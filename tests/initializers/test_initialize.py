import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from name_hash import NameHash, name_hash_values
from torch import nn

import hf_paraminit
from hf_paraminit.errors import InitializerConfigError
from hf_paraminit.initializers.initialize import initialize
from hf_paraminit.initializers.report import InitReport


def test_none_does_nothing() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    assert initialize(model, None, names=["weight"], seed=3) == InitReport()
    assert torch.equal(model.weight, before)
    assert not hasattr(model, "_hf_paraminit")


def test_seed_device_and_settings_reach_the_initializer() -> None:
    def scaled(
        model: nn.Module, names: list[str], scale: float, seed: int, device: torch.device
    ) -> dict[str, torch.Tensor]:
        return {"bias": torch.tensor([scale, float(seed), float(device.type == "cpu")])}

    model = nn.Linear(2, 3)
    report = initialize(model, scaled, seed=5, device=torch.device("cpu"), scale=2.0)
    assert model.bias.tolist() == [2.0, 5.0, 1.0]
    assert report.seed == 5


def test_an_object_is_used_as_it_is_unless_something_changes() -> None:
    model = nn.Linear(2, 2)
    assert initialize(model, NameHash(seed=4)).seed == 4
    assert initialize(model, NameHash(seed=4), seed=6).seed == 6


def test_scope_belongs_to_the_hooks() -> None:
    with pytest.raises(InitializerConfigError, match="does not take 'scope'"):
        initialize(nn.Linear(2, 2), NameHash, scope="all")


def test_distributed_mode_is_checked() -> None:
    with pytest.raises(InitializerConfigError, match="distributed must be one of auto, off; found 'on'"):
        initialize(nn.Linear(2, 2), name_hash_values, distributed="on")


RANK_SCRIPT = """
import json, os, sys
import torch
import torch.distributed as dist
from torch import nn
from hf_paraminit.errors import PredictionError
from hf_paraminit.initializers.initialize import initialize

rank, rendezvous, result = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)

def by_rank(model, names):
    return {"weight": torch.full((2, 2), 1.0 + rank, dtype=torch.bfloat16)}

def failing(model, names):
    raise RuntimeError("only on the first rank")

def outcome(model, init, **options):
    try:
        report = initialize(model, init, **options)
    except (PredictionError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return [model.weight.flatten().tolist()[0], list(report.predicted), report.kept]

results = {
    "auto": outcome(nn.Linear(2, 2), by_rank),
    "off": outcome(nn.Linear(2, 2), by_rank, distributed="off"),
    "failing": outcome(nn.Linear(2, 2), failing),
    "unlike": outcome(nn.Linear(2, 2 + rank), by_rank),
    "one without parameters": outcome(nn.Linear(2, 2) if rank == 0 else nn.ReLU(), by_rank),
    "after": outcome(nn.Linear(2, 2), by_rank),
}
with open(result, "w") as file:
    json.dump(results, file)
dist.barrier()
os._exit(0)  # without the interpreter's end, where gloo's threads now and then abort the process
"""


def test_two_ranks_get_the_prediction_of_the_first(tmp_path: Path) -> None:
    root = Path(hf_paraminit.__file__).parents[1]
    commands = [
        [
            sys.executable,
            "-c",
            textwrap.dedent(RANK_SCRIPT),
            str(rank),
            str(tmp_path / "store"),
            str(tmp_path / str(rank)),
        ]
        for rank in (0, 1)
    ]
    processes = [subprocess.Popen(command, cwd=root) for command in commands]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    first, second = (json.loads((tmp_path / str(rank)).read_text()) for rank in (0, 1))
    expected = [1.0, ["weight"], {"bias": "by_rank has no value for it"}]
    assert first["auto"] == second["auto"] == first["after"] == second["after"] == expected
    assert (first["off"][0], second["off"][0]) == (1.0, 2.0)
    assert first["failing"] == "RuntimeError: only on the first rank"
    assert second["failing"].startswith(
        "PredictionError: Initialization stopped because rank 0 failed with RuntimeError"
    )
    assert first["unlike"] == second["unlike"]
    assert "by rank 1 differ in name, shape or device" in first["unlike"]
    assert "rank 1 failed with PredictionError: ReLU has no parameters" in first["one without parameters"]
    assert second["one without parameters"].startswith("PredictionError: ReLU has no parameters")

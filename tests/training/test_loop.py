"""The training loop on a problem that can be solved by hand."""

import contextlib
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.training import loop
from hf_paraminit.training.checkpoints import CheckpointFolder
from hf_paraminit.training.loop import TrainingConfig, train


class Quadratic(nn.Module):
    """Loss |w - batch|^2, with drop-out so that the random state matters."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4))
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        distance = (self.dropout(self.w) - batch.to(self.w.device)).square().sum()
        return {"loss": distance, "largest": self.w.abs().max()}


class InterruptedRunError(Exception):
    pass


def batch_at(index: int) -> Tensor:
    return torch.ones(4) + 0.01 * torch.randn(4, generator=torch.Generator().manual_seed(index))


def batches_until(last: int) -> Callable[[int], Tensor]:
    """The same batches, but the process dies after some."""

    def interrupted(index: int) -> Tensor:
        if index == last:
            raise InterruptedRunError
        return batch_at(index)

    return interrupted


def settings(output: Path, **changes: Any) -> TrainingConfig:
    values: dict[str, Any] = {"steps": 12, "learning_rate": 0.1, "warmup_steps": 3, "log_every": 2, "cpu": True}
    return TrainingConfig(output=str(output), **{**values, "checkpoint_every": 4, **changes})


def read_records(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def without_time(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


# Learning and records


def test_loss_falls(tmp_path: Path) -> None:
    model = train(Quadratic(), batch_at, settings(tmp_path, steps=60))
    assert isinstance(model, Quadratic)
    records = read_records(tmp_path)
    assert records[0]["loss"] > 2
    assert records[-1]["loss"] < 0.01
    torch.testing.assert_close(model.w.detach(), torch.ones(4), rtol=0, atol=0.05)


def test_one_record_per_interval_and_at_the_end(tmp_path: Path) -> None:
    train(Quadratic(), batch_at, settings(tmp_path, steps=11, log_every=4))
    records = read_records(tmp_path)
    assert [record["step"] for record in records] == [4, 8, 11]
    assert set(records[0]) == {"step", "skipped", "halved", "dropped", "loss", "largest", "learning_rate", "seconds"}


def test_rate_warms_up_then_falls_to_zero(tmp_path: Path) -> None:
    train(Quadratic(), batch_at, settings(tmp_path, steps=20, warmup_steps=4, log_every=1))
    rates = [record["learning_rate"] for record in read_records(tmp_path)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.1)
    assert peak == 3
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-6)


def test_accumulated_batches_count_as_their_mean(tmp_path: Path) -> None:
    accumulated = train(Quadratic(), batch_at, settings(tmp_path / "a", gradient_accumulation=3))

    class Mean(Quadratic):
        def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
            return {"loss": torch.stack([Quadratic.forward(self, part)["loss"] for part in batch]).mean()}

    joined = train(Mean(), lambda i: [batch_at(3 * i + part) for part in range(3)], settings(tmp_path / "b"))
    torch.testing.assert_close(accumulated.w, joined.w)


def test_gradients_are_clipped(tmp_path: Path) -> None:
    """Scaling a loss leaves clipped steps as they are; the decoupled decay is the same anyway."""

    class Steep(Quadratic):
        def forward(self, batch: Tensor) -> dict[str, Tensor]:
            return {"loss": 1e4 * super().forward(batch)["loss"]}

    weights = [
        train(model, batch_at, settings(tmp_path / str(index), gradient_clip=1e-3)).w
        for index, model in enumerate((Quadratic(), Steep()))
    ]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-5)


# Checkpoints


def test_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    train(Quadratic(), batch_at, settings(tmp_path, steps=14, checkpoint_every=3, keep_checkpoints=2))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_00000012", "step_00000014"]


def test_resumed_run_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    straight = train(Quadratic(dropout=0.3), batch_at, settings(tmp_path / "straight"))
    with pytest.raises(InterruptedRunError):
        train(Quadratic(dropout=0.3), batches_until(10), settings(tmp_path / "broken"))
    assert [path.name for path in CheckpointFolder(tmp_path / "broken/checkpoints", 2).steps()][-1] == "step_00000008"
    torch.manual_seed(99)
    torch.rand(7)
    resumed = train(Quadratic(dropout=0.3), batch_at, settings(tmp_path / "broken"))
    assert torch.equal(resumed.w, straight.w)
    assert without_time(read_records(tmp_path / "broken")) == without_time(read_records(tmp_path / "straight"))


def test_leftovers_of_a_killed_process_do_not_matter(tmp_path: Path) -> None:
    straight = train(Quadratic(), batch_at, settings(tmp_path / "straight"))
    broken = tmp_path / "broken"
    with pytest.raises(InterruptedRunError):
        train(Quadratic(), batches_until(7), settings(broken))
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # killed while writing
    (broken / "checkpoints" / "step_00000008.unfinished").mkdir()
    (broken / "checkpoints" / "step_00000008.unfinished" / "model.safetensors").write_bytes(b"half")
    assert torch.equal(train(Quadratic(), batch_at, settings(broken)).w, straight.w)
    assert without_time(read_records(broken)) == without_time(read_records(tmp_path / "straight"))
    assert not list((broken / "checkpoints").glob("*.unfinished"))


def test_killed_process_resumes_bit_exactly(tmp_path: Path) -> None:
    """`kill -9` in the middle of a step, in a process of its own."""
    code = (
        "import os, sys; sys.path[:0] = [sys.argv[1]]\n"
        "from pathlib import Path; from test_loop import *\n"
        "def batch(index):\n"
        "    if index == 10: os.kill(os.getpid(), 9)\n"
        "    return batch_at(index)\n"
        "train(Quadratic(dropout=0.3), batch, settings(Path(sys.argv[2])))\n"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "killed")]
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == -9
    straight = train(Quadratic(dropout=0.3), batch_at, settings(tmp_path / "straight"))
    resumed = train(Quadratic(dropout=0.3), batch_at, settings(tmp_path / "killed"))
    assert torch.equal(resumed.w, straight.w)


def test_finished_run_is_not_repeated(tmp_path: Path) -> None:
    finished = train(Quadratic(), batch_at, settings(tmp_path))
    records = read_records(tmp_path)

    def no_batch(index: int) -> Tensor:
        raise AssertionError("asked for a batch")

    assert torch.equal(train(Quadratic(), no_batch, settings(tmp_path)).w, finished.w)
    assert read_records(tmp_path) == records


def test_resuming_under_other_settings_is_refused(tmp_path: Path) -> None:
    train(Quadratic(), batch_at, settings(tmp_path))
    with pytest.raises(TrainingConfigError, match=r"steps.*12.*24"):
        train(Quadratic(), batch_at, settings(tmp_path, steps=24))
    train(Quadratic(), batch_at, settings(tmp_path, log_every=5))  # does not change the result


# Bad steps


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_bad_steps_are_skipped_and_counted(tmp_path: Path, value: float, caplog: pytest.LogCaptureFixture) -> None:
    def sometimes_bad(index: int) -> Tensor:
        return torch.full((4,), value) if index in (0, 5) else batch_at(index)

    with caplog.at_level(logging.WARNING, logger="hf_paraminit"):
        model = train(Quadratic(), sometimes_bad, settings(tmp_path, steps=60, log_every=1))
    records = read_records(tmp_path)
    assert [record["skipped"] for record in records[:7]] == [1, 1, 1, 1, 1, 2, 2]
    assert records[5]["loss"] is None
    assert records[5]["largest"] == pytest.approx(records[6]["largest"])  # no step in between
    assert records[-1]["skipped"] == 2
    assert sum("skipped" in message for message in caplog.messages) == 2
    torch.testing.assert_close(model.w.detach(), torch.ones(4), rtol=0, atol=0.05)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_number_of_skipped_steps_survives_a_restart(tmp_path: Path) -> None:
    def bad_start(index: int) -> Tensor:
        if index == 6:
            raise InterruptedRunError
        return torch.full((4,), torch.nan) if index == 0 else batch_at(index)

    with pytest.raises(InterruptedRunError):
        train(Quadratic(), bad_start, settings(tmp_path))
    train(Quadratic(), batch_at, settings(tmp_path))
    assert read_records(tmp_path)[-1]["skipped"] == 1


class ScaledAccelerator(Accelerator):
    """Mixed precision of 16-bit floats as on a GPU, where the first loss scale is too large."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        self.native_amp = True

    @property
    def mixed_precision(self) -> str:
        return "fp16"

    def autocast(self, *args: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_gradient_scaler_recovers_from_overflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "Accelerator", ScaledAccelerator)
    model = train(Quadratic(), batch_at, settings(tmp_path, steps=60))
    assert read_records(tmp_path)[-1]["skipped"] == 1
    torch.testing.assert_close(model.w.detach(), torch.ones(4), rtol=0, atol=0.05)


def test_a_clip_of_zero_is_no_limit(tmp_path: Path) -> None:
    moved = {}
    for clip in (0.0, 1e-3, 1e9):
        config = settings(tmp_path / str(clip), steps=1, gradient_clip=clip)
        model = train(Quadratic(), batch_at, config, optimizer=lambda model: torch.optim.SGD(model.parameters(), 0.1))
        moved[clip] = model.w.detach().norm()
    assert moved[0.0] == moved[1e9] > 1e-2
    assert 0 < moved[1e-3] < 1e-3


# Settings


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"gradient_accumulation": 0},
        {"log_every": 0},
        {"checkpoint_every": -1},
        {"keep_checkpoints": 0},
        {"learning_rate": -0.1},
        {"learning_rate": torch.nan},
        {"weight_decay": -1},
        {"warmup_steps": -1},
        {"gradient_clip": torch.inf},
        {"mixed_precision": "fp8"},
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(TrainingConfigError, match=next(iter(changes))):
        settings(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


# Several processes


def test_two_processes_share_the_batches(tmp_path: Path) -> None:
    """Two processes with one batch each equal one process that accumulates two."""
    script = tmp_path / "run.py"
    script.write_text(
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "from pathlib import Path; from test_loop import *\n"
        f"model = train(Quadratic(), batch_at, settings(Path({str(tmp_path / 'two')!r})))\n"
        "import os; torch.save(model.state_dict(), sys.argv[1] + os.environ['RANK'])\n"
        "torch.distributed.barrier(); os._exit(0)\n"  # gloo's threads can abort a process that ends by itself
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    finished = subprocess.run([*launch, str(tmp_path / "weights")], capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0, finished.stderr[-3000:]
    alone = train(Quadratic(), batch_at, settings(tmp_path / "one", gradient_accumulation=2))
    for rank in range(2):
        weights = torch.load(tmp_path / f"weights{rank}", weights_only=True)
        torch.testing.assert_close(weights["w"], alone.w.detach())
    together, single = read_records(tmp_path / "two"), read_records(tmp_path / "one")
    assert [record["step"] for record in together] == [record["step"] for record in single]
    assert together[-1]["loss"] == pytest.approx(single[-1]["loss"], rel=1e-4)


def test_a_run_stopped_before_its_end_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    straight = train(Quadratic(0.5), batch_at, settings(tmp_path / "straight", steps=6))
    train(Quadratic(0.5), batch_at, settings(tmp_path / "stopped", steps=6, stop_after=4))
    assert read_records(tmp_path / "stopped")[-1]["step"] == 4
    resumed = train(Quadratic(0.5), batch_at, settings(tmp_path / "stopped", steps=6))
    assert torch.equal(straight.w, resumed.w)


def test_a_run_cannot_stop_in_its_past(tmp_path: Path) -> None:
    train(Quadratic(), batch_at, settings(tmp_path, steps=6, stop_after=4))
    with pytest.raises(TrainingConfigError, match="at step 4, past 2"):
        train(Quadratic(), batch_at, settings(tmp_path, steps=6, stop_after=2))

"""What the training loop does when it is killed, interrupted, out of memory or disk; and what methods bring it."""

import errno
import logging
import os
import random
import signal
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate.tracking
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, on_main_process
from accelerate.utils import LoggerType
from test_loop import Quadratic, batch_at, read_records, settings, without_time
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR

from hf_paraminit.errors import CheckpointError, MissingDependencyError, OutputError, TrainingConfigError
from hf_paraminit.training import loop, records
from hf_paraminit.training.checkpoints import CheckpointFolder
from hf_paraminit.training.loop import TrainingConfig, train

pytestmark = pytest.mark.filterwarnings("ignore:Seems like:UserWarning", "ignore:Detected call of:UserWarning")

WEIGHTS = "weights.pt"


class Parts(list):
    """A batch of several draws that can be halved."""

    def halves(self) -> tuple["Parts", ...]:
        middle = len(self) // 2
        return (Parts(self[:middle]), Parts(self[middle:])) if middle else ()


class QuadraticOfParts(Quadratic):
    """Runs out of memory on batches of more than some draws."""

    def __init__(self, capacity: int, error: str = "CUDA out of memory. Tried to allocate") -> None:
        super().__init__()
        self.capacity, self.error = capacity, error
        self.idle = nn.Parameter(torch.ones(2))  # never used: no decay may move it

    def forward(self, batch: Parts) -> dict[str, Tensor]:  # type: ignore[override]
        loss = torch.stack([Quadratic.forward(self, part)["loss"] for part in batch]).mean()
        if len(batch) > self.capacity:
            loss.sum().backward(retain_graph=True)  # gradients of a part that did fit
            raise torch.OutOfMemoryError(self.error)
        return {"loss": loss}


def parts_at(index: int) -> Parts:
    return Parts(batch_at(4 * index + part) for part in range(4))


def in_processes(count: int, work: Callable[[int], None]) -> list[int]:
    """Run `work(rank)` in forked processes that find each other through gloo; return how each ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(count):
        if not (child := os.fork()):
            code = 1
            try:
                AcceleratorState._reset_state(True)
                GradientState._reset_state()
                if count > 1:
                    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
                    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
                work(rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)  # neither pytest nor gloo's threads end in here
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# Killed


@pytest.mark.parametrize("processes", [1, 2])
def test_run_killed_again_and_again_equals_the_uninterrupted_one(tmp_path: Path, processes: int) -> None:
    """Each attempt dies at a random batch, or in the middle of writing a checkpoint; the last one ends."""
    rng = random.Random(processes)

    def straight(rank: int) -> None:
        model = train(Quadratic(0.3), batch_at, settings(tmp_path / "straight"))
        torch.save(model.state_dict(), tmp_path / f"straight{rank}.pt")

    def attempt(rank: int, victim: int, fatal_batch: int, fatal_save: int) -> None:
        def fatal_batch_at(index: int) -> Tensor:
            if index == fatal_batch * processes + rank and rank == victim:
                die()
            return batch_at(index)

        save_state = Accelerator.save_state

        def half_saved(self: Accelerator, folder: str) -> None:
            save_state(self, folder)
            if f"step_{fatal_save:08d}" in folder and rank == victim:
                die()

        Accelerator.save_state = half_saved  # type: ignore[method-assign,assignment]
        model = train(Quadratic(0.3), fatal_batch_at, settings(tmp_path / "killed"))
        torch.save(model.state_dict(), tmp_path / f"killed{rank}.pt")

    assert in_processes(processes, straight) == [0] * processes
    moments = [(rng.randrange(1, 4), -1), (99, 4), (rng.randrange(4, 8), -1), (99, 12), (99, -1)]
    for fatal_batch, fatal_save in moments:
        victim = rng.randrange(processes)
        codes = in_processes(
            processes,
            lambda rank, victim=victim, batch=fatal_batch, save=fatal_save: attempt(rank, victim, batch, save),
        )
        is_killed = (fatal_batch, fatal_save) != (99, -1)
        assert (codes[victim] == -signal.SIGKILL) == is_killed, codes
    for rank in range(processes):
        expected, found = (torch.load(tmp_path / f"{name}{rank}.pt")["w"] for name in ("straight", "killed"))
        assert torch.equal(expected, found)
    assert without_time(read_records(tmp_path / "killed")) == without_time(read_records(tmp_path / "straight"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_leaves_a_checkpoint(tmp_path: Path, number: int, caplog: pytest.LogCaptureFixture) -> None:
    def interrupted_at_six(index: int) -> Tensor:
        if index == 6:
            os.kill(os.getpid(), number)
        return batch_at(index)

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
        train(Quadratic(0.3), interrupted_at_six, settings(tmp_path / "a"))
    assert signal.getsignal(number) == before
    assert CheckpointFolder(tmp_path / "a/checkpoints", 2).steps()[-1].name == "step_00000007"
    assert "checkpoint" in caplog.text
    resumed = train(Quadratic(0.3), batch_at, settings(tmp_path / "a"))
    assert torch.equal(resumed.w, train(Quadratic(0.3), batch_at, settings(tmp_path / "b")).w)


def test_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    def impatient(index: int) -> Tensor:
        if index == 6:
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)  # handled at once; of two that are pending only one would be seen
        return batch_at(index)

    # Whoever runs the tests in the background has SIGINT ignored, which the loop respects.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(Quadratic(), impatient, settings(tmp_path))
    finally:
        signal.signal(signal.SIGINT, before)
    assert CheckpointFolder(tmp_path / "checkpoints", 2).steps()[-1].name == "step_00000004"


def test_interrupt_of_one_process_ends_both_with_a_common_checkpoint(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        def interrupted(index: int) -> Tensor:
            if index == 5:  # rank 1, third step
                os.kill(os.getpid(), signal.SIGINT)
            return batch_at(index)

        with pytest.raises(KeyboardInterrupt):
            train(Quadratic(), interrupted, settings(tmp_path))

    assert in_processes(2, work) == [0, 0]
    assert [path.name for path in CheckpointFolder(tmp_path / "checkpoints", 2).steps()] == ["step_00000003"]


# Out of memory


@pytest.mark.parametrize("error", ["CUDA out of memory. Tried", "DefaultCPUAllocator: can't allocate memory: you"])
def test_batch_that_does_not_fit_is_halved_without_changing_the_result(tmp_path: Path, error: str) -> None:
    plain = train(QuadraticOfParts(4), parts_at, settings(tmp_path / "plain", steps=3))
    halved = train(QuadraticOfParts(1, error), parts_at, settings(tmp_path / "halved", steps=3))
    torch.testing.assert_close(halved.w, plain.w)
    assert torch.equal(halved.idle, torch.ones(2))
    last = read_records(tmp_path / "halved")[-1]
    assert (last["halved"], last["dropped"], last["skipped"]) == (3 * 3, 0, 0)
    assert last["loss"] == pytest.approx(read_records(tmp_path / "plain")[-1]["loss"])


def test_smallest_batch_that_does_not_fit_is_dropped_and_counted(tmp_path: Path) -> None:
    def sometimes_large(index: int) -> Parts:
        return Parts([batch_at(index)] * (2 if index == 5 else 1))

    class Greedy(QuadraticOfParts):
        def forward(self, batch: Parts) -> dict[str, Tensor]:  # type: ignore[override]
            self.capacity = 0 if len(batch) == 2 or self.capacity == 0 else 1
            return super().forward(batch)

    class Forgetful(Greedy):
        def train(self, mode: bool = True) -> "Forgetful":
            self.capacity = 1  # a new step
            return super().train(mode)

    train(Forgetful(1), sometimes_large, settings(tmp_path, log_every=1))
    counters = [(line["halved"], line["dropped"], line["skipped"]) for line in read_records(tmp_path)]
    assert counters[4:7] == [(0, 0, 0), (1, 2, 1), (1, 2, 1)]


def test_one_process_halves_and_the_other_does_not(tmp_path: Path) -> None:
    """Both still average the same gradients: two processes equal one that accumulates."""

    def work(rank: int) -> None:
        model = train(QuadraticOfParts(4 if rank else 1), parts_at, settings(tmp_path / "two", steps=3))
        torch.save(model.state_dict(), tmp_path / f"{rank}.pt")

    assert in_processes(2, work) == [0, 0]
    alone = train(QuadraticOfParts(4), parts_at, settings(tmp_path / "one", steps=3, gradient_accumulation=2))
    for rank in range(2):
        weights = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(weights["w"], alone.w.detach())
        assert torch.equal(weights["idle"], torch.ones(2))
    together = read_records(tmp_path / "two")[-1]
    assert together["halved"] == 3 * 3
    assert together["loss"] == pytest.approx(read_records(tmp_path / "one")[-1]["loss"], rel=1e-5)


def test_other_errors_and_indivisible_batches_are_not_swallowed(tmp_path: Path) -> None:
    class Broken(Quadratic):
        def forward(self, batch: Tensor) -> dict[str, Tensor]:
            raise RuntimeError(message)

    for message in ("CUDA out of memory. Tried", "shapes do not fit"):
        with pytest.raises(RuntimeError, match=message):
            train(Broken(), batch_at, settings(tmp_path))


# Out of disk, damaged, different


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file data/0")],
)
def test_full_disk_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    save_state = Accelerator.save_state

    def save(self: Accelerator, folder: str) -> None:
        save_state(self, folder)
        if "step_00000008" in folder:
            raise failure

    with monkeypatch.context() as full_disk:
        full_disk.setattr(Accelerator, "save_state", save)
        with pytest.raises(OutputError, match=r"step_00000008.*step_00000004, is intact") as error:
            train(Quadratic(0.3), batch_at, settings(tmp_path / "a"))
    assert "Free some space" in str(error.value)
    assert [path.name for path in (tmp_path / "a/checkpoints").iterdir()] == ["step_00000004"]
    resumed = train(Quadratic(0.3), batch_at, settings(tmp_path / "a"))
    assert torch.equal(resumed.w, train(Quadratic(0.3), batch_at, settings(tmp_path / "b")).w)


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    train(Quadratic(), batch_at, settings(tmp_path, stop_after=4))
    (tmp_path / "checkpoints/step_00000004/model.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"step_00000004.*Delete this folder"):
        train(Quadratic(), batch_at, settings(tmp_path))


def test_checkpoint_of_another_identity_is_refused_with_the_difference(tmp_path: Path) -> None:
    train(Quadratic(), batch_at, settings(tmp_path, stop_after=4), identity={"width": 4, "data": ["a", "b"]})
    before = (tmp_path / "settings.json").read_text()
    with pytest.raises(TrainingConfigError, match=r"'width': \(4, 5\)") as error:
        train(Quadratic(), batch_at, settings(tmp_path), identity={"width": 5, "data": ("a", "b")})
    assert "'data'" not in str(error.value)
    assert (tmp_path / "settings.json").read_text() == before
    train(Quadratic(), batch_at, settings(tmp_path), identity={"width": 4, "data": ("a", "b")})


def test_batches_may_be_shared_out_otherwise_but_not_change_in_number(tmp_path: Path) -> None:
    train(Quadratic(), batch_at, settings(tmp_path, stop_after=4, gradient_accumulation=2))
    with pytest.raises(TrainingConfigError, match=r"'batches_per_step': \(2, 3\)"):
        train(Quadratic(), batch_at, settings(tmp_path, gradient_accumulation=3))


def test_run_that_diverged_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.ERROR, logger="hf_paraminit"),
        pytest.raises(TrainingConfigError, match=r"diverged.*lower learning rate"),
    ):
        train(Quadratic(), lambda index: torch.full((4,), torch.nan), settings(tmp_path, steps=200))
    assert (tmp_path / "metrics.jsonl").exists()


# What methods bring


class Average:
    """Mean of the weights over all steps."""

    def __init__(self) -> None:
        self.mean, self.count = torch.zeros(4), 0

    def __call__(self, model: nn.Module, step: int) -> None:
        assert isinstance(model, Quadratic)
        assert step == self.count + 1
        self.mean, self.count = (self.mean * self.count + model.w.detach()) / step, step

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.count = state["mean"], state["count"]


def test_state_of_a_method_goes_through_checkpoints(tmp_path: Path) -> None:
    averages = [Average(), Average(), Average()]
    train(Quadratic(), batch_at, settings(tmp_path / "a"), after_step=averages[0], stateful=[averages[0]])
    for average, stop in zip(averages[1:], (5, None), strict=True):
        config = settings(tmp_path / "b", stop_after=stop)
        train(Quadratic(), batch_at, config, after_step=average, stateful=[average])
    assert averages[0].count == averages[2].count == 12
    assert torch.equal(averages[0].mean, averages[2].mean)


def test_own_optimizer_and_schedule(tmp_path: Path) -> None:
    config = settings(tmp_path, log_every=1, gradient_clip=1e6)
    model = train(
        Quadratic(),
        lambda index: torch.ones(4),
        config,
        optimizer=lambda model: torch.optim.SGD(model.parameters(), config.learning_rate),
        schedule=lambda optimizer, config: ConstantLR(optimizer, factor=0.5, total_iters=config.steps),
    )
    # w <- w - rate * 2 (w - 1), the rate being half of 0.1.
    torch.testing.assert_close(model.w.detach(), torch.full((4,), 1 - 0.9**12))
    assert {record["learning_rate"] for record in read_records(tmp_path)[:-1]} == {0.05}


def test_bfloat16(tmp_path: Path) -> None:
    class Matrix(Quadratic):
        def forward(self, batch: Tensor) -> dict[str, Tensor]:
            product = nn.functional.linear(torch.eye(4), self.w.expand(4, 4))
            seen.add(product.dtype)
            return {"loss": (product.float() - batch).square().mean()}

    seen: set[torch.dtype] = set()
    model = train(Matrix(), batch_at, settings(tmp_path, steps=60, checkpoint_every=60, mixed_precision="bf16"))
    assert seen == {torch.bfloat16}
    torch.testing.assert_close(model.w.detach(), torch.ones(4), rtol=0, atol=0.05)


# Trackers


class ListTracker(GeneralTracker):
    """Keeps what it is told."""

    name = "tensorboard"
    requires_logging_directory = False
    told: list[Any]

    def __init__(self, run_name: str, **_: Any) -> None:
        super().__init__()
        type(self).told = [run_name]

    @property
    def tracker(self) -> list[Any]:
        return self.told

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.told.append(values)

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None, **_: Any) -> None:
        self.told.append((step, values))

    @on_main_process
    def finish(self) -> None:
        self.told.append("finished")


def test_trackers_get_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "tensorboard", ListTracker)
    for module in (accelerate.tracking, records):
        monkeypatch.setattr(module, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    train(Quadratic(), batch_at, settings(tmp_path, trackers=["tensorboard"]))
    name, config, *told = ListTracker.told
    assert (name, config["steps"], told[-1]) == ("hf_paraminit", 12, "finished")
    assert [step for step, _ in told[:-1]] == [2, 4, 6, 8, 10, 12]
    assert told[0][1]["loss"] == read_records(tmp_path)[0]["loss"]


def test_missing_tracker_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(MissingDependencyError, match=r"not installed: wandb .*pip install wandb"):
        train(Quadratic(), batch_at, settings(tmp_path, trackers=("tensorboard", "wandb")))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_unknown_tracker_is_refused() -> None:
    with pytest.raises(TrainingConfigError, match=r"'papyrus'.*tensorboard"):
        TrainingConfig(output="unused", steps=1, trackers=("papyrus",))


def test_loss_scale_stays_above_its_floor() -> None:
    class Scaled:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)

    Scaled.scaler.scale(torch.ones(1))
    loop._keep_scale_up(Scaled)  # type: ignore[arg-type]
    assert Scaled.scaler.get_scale() == loop.LOWEST_SCALE

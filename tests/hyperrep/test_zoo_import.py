"""The layout of the published zoos: read without running anything, written, and refused where it is broken."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_zoo import tiny_cnn
from torch import nn

from hf_paraminit.errors import CheckpointError, OutputError, PredictorNotFoundError
from hf_paraminit.hyperrep.zoo import Zoo
from hf_paraminit.hyperrep.zoo_import import export_zoo, import_zoo
from hf_paraminit.hyperrep.zoo_nets import example_images


@pytest.fixture(scope="session")
def published(tiny_zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "zoo"
    export_zoo(tiny_zoo, folder)
    return folder


@pytest.fixture
def copied(published: Path, tmp_path: Path) -> Path:
    shutil.copytree(published, tmp_path / "source")
    return tmp_path / "source"


def test_export_and_import_lose_nothing(tiny_zoo: Zoo, published: Path, tmp_path: Path) -> None:
    found = import_zoo(
        published, tmp_path / "zoo", architecture="cnn-tiny", model=tiny_cnn(), images=example_images(1, 8)
    )
    assert found.faults == []
    assert found.tensors == tiny_zoo.tensors
    assert found.permutations == tiny_zoo.permutations
    for (row, weights), (expected, others) in zip(found, tiny_zoo, strict=True):
        for name in ("model_id", "epoch", "split", "seed", "test_accuracy", "train_loss", "generalization_gap"):
            assert getattr(row, name) == getattr(expected, name)
        assert row.config["learning_rate"] == 4e-3
        assert all(torch.equal(weights[name], others[name]) for name in others)


def test_the_exported_layout_is_the_published_one(published: Path) -> None:
    trial = published / "model-00002"
    assert sorted(path.name for path in trial.iterdir()) == [
        "checkpoint_000001", "checkpoint_000002", "checkpoint_000003", "params.json", "result.json"
    ]  # fmt: skip
    lines = [json.loads(line) for line in (trial / "result.json").read_text().splitlines()]
    assert [line["training_iteration"] for line in lines] == [1, 2, 3]
    assert {"train_acc", "test_acc", "train_loss", "config"} <= set(lines[0])
    assert json.loads((trial / "params.json").read_text())["model::type"] == "cnn-tiny"
    tiny_cnn().load_state_dict(torch.load(trial / "checkpoint_000003" / "checkpoints", weights_only=True))


def write_trial(folder: Path, *, first: int, epochs: list[int], digits: int) -> None:
    """A trial as the published software writes it."""
    for epoch in epochs:
        path = folder / f"checkpoint_{epoch:0{digits}d}" / "checkpoints"
        path.parent.mkdir(parents=True)
        torch.save(nn.Linear(2, 2).state_dict(), path)
    (folder / "params.json").write_text(json.dumps({"model::type": "Linear", "optim::lr": 0.1}))
    lines = [{"training_iteration": e, "test_acc": e / 100, "train_acc": e / 50} for e in range(first, max(epochs) + 1)]
    (folder / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("digits", [1, 6])
def test_lines_are_found_whether_or_not_epoch_0_was_logged(tmp_path: Path, first: int, digits: int) -> None:
    for seed in (7, 11):
        write_trial(tmp_path / "source" / f"NN_tune_seed={seed}", first=first, epochs=[5, 21], digits=digits)
    zoo = import_zoo(tmp_path / "source", tmp_path / "zoo", architecture="Linear")
    assert [(row.epoch, row.test_accuracy) for row in zoo.rows[:2]] == [(5, 0.05), (21, 0.21)]
    assert zoo.rows[1].generalization_gap == pytest.approx(0.21)
    assert [row.seed for row in zoo.rows[::2]] == [11, 7]  # in order of names
    assert zoo.rows[0].config["optim::lr"] == 0.1
    assert [spec.kind for spec in zoo.tensors] == ["matrix", "vector"]


def truncate(folder: Path) -> str:
    path = folder / "model-00003/checkpoint_000002/checkpoints"
    path.write_bytes(path.read_bytes()[:-100])
    return "model-00003: could not read the checkpoint"


def drop_epoch(folder: Path) -> str:
    shutil.rmtree(folder / "model-00003/checkpoint_000002")
    return "model-00003 lacks epoch 2"


def other_layer(folder: Path) -> str:
    path = folder / "model-00003/checkpoint_000002/checkpoints"
    state_dict = torch.load(path)
    torch.save({**state_dict, "module_list.6.bias": torch.zeros(3)}, path)
    return (
        r"model-00003: checkpoint_000002 is of another architecture: module_list\.6\.bias is \(\(3,\), torch\.float32\)"
    )


def lose_records(folder: Path) -> str:
    (folder / "model-00003/result.json").write_text('{"training_iteration": 1')
    return r"model-00003: params\.json or result\.json cannot be read"


def other_records(folder: Path) -> str:
    (folder / "model-00003/result.json").write_text('{"training_iteration": 7}\n' * 3)
    return r"model-00003: result\.json has 3 lines, none of which is of epoch 1"


class Attack:
    def __reduce__(self) -> tuple:
        return (Path("attacked").touch, ())


def attack(folder: Path) -> str:
    (folder / "model-00003/checkpoint_000002/checkpoints").write_bytes(pickle.dumps({"w": Attack()}, protocol=2))
    return "model-00003: .*Nothing of it was executed"


@pytest.mark.parametrize("damage", [truncate, drop_epoch, other_layer, lose_records, other_records, attack])
def test_faulty_trials_are_refused_or_skipped(
    copied: Path, tmp_path: Path, damage: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = damage(copied)
    with pytest.raises(CheckpointError, match=message):
        import_zoo(copied, tmp_path / "zoo", architecture="cnn-tiny")
    assert not (tmp_path / "zoo").exists()
    assert not (tmp_path / "attacked").exists()
    zoo = import_zoo(copied, tmp_path / "zoo", architecture="cnn-tiny", faults="skip")
    assert len(zoo.model_ids) == 7
    assert "model-00003" not in zoo.model_ids
    assert len(zoo.faults) == 1


def test_nan_members_are_imported_and_marked(copied: Path, tmp_path: Path) -> None:
    path = copied / "model-00003/checkpoint_000002/checkpoints"
    torch.save({name: tensor * float("nan") for name, tensor in torch.load(path).items()}, path)
    zoo = import_zoo(copied, tmp_path / "zoo", architecture="cnn-tiny")
    assert [(row.model_id, row.epoch) for row in zoo.rows if not row.is_finite] == [("model-00003", 2)]


def test_what_is_no_published_zoo(published: Path, tiny_zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(PredictorNotFoundError, match="There is no folder"):
        import_zoo(tmp_path / "nothing", tmp_path / "zoo", architecture="x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PredictorNotFoundError, match="has no trials: expected folders with checkpoint_<epoch>"):
        import_zoo(tmp_path / "empty", tmp_path / "zoo", architecture="x")
    with pytest.raises(OutputError, match="holds a zoo already"):
        import_zoo(published, tiny_zoo.folder, architecture="x")
    with pytest.raises(CheckpointError, match="another architecture"):
        import_zoo(published, tmp_path / "zoo", architecture="x", model=nn.Linear(2, 2), faults="skip")

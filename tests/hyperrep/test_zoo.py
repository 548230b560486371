"""Reading a zoo: rows, filters, and every way in which it can be broken."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hf_paraminit.errors import CheckpointError, PredictorNotFoundError
from hf_paraminit.hyperrep.tokens import TokenLayout
from hf_paraminit.hyperrep.zoo import Zoo, ZooRow


@pytest.fixture
def copied(zoo_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(zoo_folder, tmp_path / "zoo")
    return tmp_path / "zoo"


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "models.jsonl").read_text().splitlines()]


def write_rows(folder: Path, rows: list[dict]) -> None:
    (folder / "models.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_rows_and_weights(tiny_zoo: Zoo) -> None:
    assert len(tiny_zoo) == 8 * 3
    assert len(tiny_zoo.model_ids) == 8
    assert tiny_zoo.faults == []
    assert [row.epoch for row in tiny_zoo.rows[:4]] == [1, 2, 3, 1]
    stacked = tiny_zoo.stacked()
    for number, (row, state_dict) in enumerate(tiny_zoo):
        assert row == tiny_zoo.rows[number]
        assert [*state_dict] == [spec.name for spec in tiny_zoo.tensors]
        single = tiny_zoo.state_dict(number)
        for name, tensor in state_dict.items():
            assert torch.equal(tensor, single[name])
            assert torch.equal(tensor, stacked[name][number])
    layout = TokenLayout.from_tensors(tiny_zoo.tensors)
    assert layout.tokenize(stacked).shape == (24, 40, 73)


def test_files_are_self_describing(zoo_folder: Path) -> None:
    index = json.loads((zoo_folder / "zoo.safetensors.index.json").read_text())
    shards = sorted(path.relative_to(zoo_folder).as_posix() for path in (zoo_folder / "data").iterdir())
    assert shards == [f"data/zoo-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert index["row_map"] == {shard: [0, 11] for shard in shards}
    assert index["weight_map"]["module_list.0.weight"] == shards
    assert load_file(zoo_folder / shards[0])["module_list.0.weight"].shape == (12, 8, 1, 3, 3)


def test_a_model_is_in_one_split_with_all_its_epochs(tiny_zoo: Zoo) -> None:
    splits = {split: tiny_zoo.select(split=split).model_ids for split in ("train", "validation", "test")}
    assert [len(ids) for ids in splits.values()] == [6, 1, 1]
    assert len({model_id for ids in splits.values() for model_id in ids}) == 8


def test_filters(tiny_zoo: Zoo) -> None:
    assert {row.epoch for row in tiny_zoo.select(epochs=[1, 3]).rows} == {1, 3}
    assert {row.epoch for row in tiny_zoo.select(last=True).rows} == {3}
    assert {row.epoch for row in tiny_zoo.select(epochs=[1, 2], last=True).rows} == {2}
    assert {row.seed for row in tiny_zoo.select(where=lambda row: row.seed in (2, 5)).rows} == {2, 5}
    accuracy = tiny_zoo.values("validation_accuracy")
    threshold = float(accuracy.median())
    kept = tiny_zoo.select(min_accuracy=threshold)
    assert len(kept) == int((accuracy >= threshold).sum())
    assert min(row.validation_accuracy for row in kept.rows) >= threshold
    assert len(tiny_zoo.select(max_accuracy=threshold)) == int((accuracy <= threshold).sum())
    train = tiny_zoo.select(split="train")
    best = train.select(top=0.3, by="test_accuracy")
    limit = train.values("test_accuracy").quantile(0.7)
    assert len(best) == int((train.values("test_accuracy") >= limit).sum()) > 0
    assert best.stacked()["module_list.8.bias"].shape == (len(best), 10)
    assert len(tiny_zoo) == 24


def test_values(tiny_zoo: Zoo) -> None:
    gap = tiny_zoo.values("generalization_gap")
    torch.testing.assert_close(gap, tiny_zoo.values("train_accuracy") - tiny_zoo.values("test_accuracy"))
    assert set(tiny_zoo.values("learning_rate").tolist()) == {4e-3}
    assert tiny_zoo.values("epoch").tolist()[:3] == [1, 2, 3]
    with pytest.raises(CheckpointError, match=r"have no numbers 'accuracy'; known are .*test_accuracy.*learning_rate"):
        tiny_zoo.values("accuracy")
    with pytest.raises(CheckpointError, match="no numbers 'optimizer'"):
        tiny_zoo.values("optimizer")


def test_alignment_brings_models_closer_and_keeps_their_function(tiny_zoo: Zoo) -> None:
    spec = tiny_zoo.permutations
    assert spec is not None
    found = tiny_zoo.align()
    assert [*found] == tiny_zoo.model_ids
    first = tiny_zoo.model_ids[0]
    assert all(torch.equal(order, torch.arange(len(order))) for order in found[first].values())
    layout = TokenLayout.from_tensors(tiny_zoo.tensors)
    last = [(row, state_dict) for row, state_dict in tiny_zoo.select(last=True)]
    reference = layout.to_vector(last[0][1])
    before = [float((layout.to_vector(weights) - reference).norm()) for _, weights in last[1:]]
    after = [
        float((layout.to_vector(spec.apply(weights, found[row.model_id])) - reference).norm())
        for row, weights in last[1:]
    ]
    assert all(b < a for a, b in zip(before, after, strict=True))


def test_nan_members_and_outliers_are_left_out_by_name(copied: Path) -> None:
    shard = copied / rows_of(copied)[0]["shard"]
    with torch.no_grad():
        tensors = load_file(shard)
        tensors["module_list.2.weight"][1, 0, 0, 0, 0] = float("nan")
        tensors["module_list.2.weight"][5, 0, 0, 0, 0] = 40.0
    with safe_open(shard, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, shard, metadata)
    zoo = Zoo.open(copied)
    assert zoo.faults == []
    clean = zoo.clean()
    assert clean.faults == ["model-00000 at epoch 2 has NaN or infinite weights"]
    strict = zoo.clean(max_abs=20.0)
    assert len(strict) == 22
    assert strict.faults[1] == "model-00001 at epoch 3 has a weight of magnitude 40"


def truncate(folder: Path) -> str:
    shard = folder / "data/zoo-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-64])
    return r"zoo-00002-of-00002\.safetensors \(models model-00004, model-00005, model-00006 and more\) is missing or tr"


def remove_shard(folder: Path) -> str:
    (folder / "data/zoo-00001-of-00002.safetensors").unlink()
    return r"zoo-00001-of-00002\.safetensors .*is missing or truncated"


def drop_epoch(folder: Path) -> str:
    write_rows(folder, [row for row in rows_of(folder) if (row["model_id"], row["epoch"]) != ("model-00003", 2)])
    return "model-00003 lacks epoch 2"


def drop_model(folder: Path) -> str:
    write_rows(folder, [row for row in rows_of(folder) if row["model_id"] != "model-00003"])
    return "1 of 8 models are missing"


def other_layer(folder: Path) -> str:
    shard = folder / "data/zoo-00002-of-00002.safetensors"
    tensors = load_file(shard)
    tensors["module_list.6.bias"] = torch.zeros(12, 5)
    save_file(tensors, shard)
    return r"module_list\.6\.bias is \(5,\), the layout says \(16,\)"


def other_network(folder: Path) -> str:
    save_file({"weight": torch.zeros(12, 5)}, folder / "data/zoo-00002-of-00002.safetensors")
    return r"module_list\.0\.weight is missing"


def too_few_rows(folder: Path) -> str:
    shard = folder / "data/zoo-00001-of-00002.safetensors"
    save_file({name: tensor[:7].clone() for name, tensor in load_file(shard).items()}, shard)
    return "has 7 rows, expected 12"


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (truncate, 4),
        (remove_shard, 4),
        (drop_epoch, 7),
        (drop_model, 7),
        (other_layer, 4),
        (other_network, 4),
        (too_few_rows, 4),
    ],
)
def test_faulty_zoos_are_refused_or_their_models_skipped(
    copied: Path, damage: Callable[[Path], str], left: int
) -> None:
    message = damage(copied)
    with pytest.raises(CheckpointError, match=message) as error:
        Zoo.open(copied)
    assert 'faults="skip"' in str(error.value)
    zoo = Zoo.open(copied, faults="skip")
    assert len(zoo.model_ids) == left
    assert len(zoo.faults) == 1
    assert zoo.stacked()["module_list.0.weight"].shape[0] == len(zoo) == 3 * left


def test_what_is_no_zoo(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(PredictorNotFoundError, match="no model zoo"):
        Zoo.open(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no zoo_config\.json.*paraminit zoo build"):
        Zoo.open(tmp_path / "empty")
    card = json.loads((copied / "zoo_config.json").read_text())
    for name, content, message in (
        ("zoo_config.json", "{", "cannot be read as JSON"),
        ("zoo_config.json", "[]", "holds no JSON object"),
        ("zoo_config.json", json.dumps({**card, "format_version": 9}), "format_version 9; expected"),
        ("layout.json", '{"tensors": [{"name": "x"}]}', "describes a tensor by"),
        ("models.jsonl", '{"model_id": 3}\n', r"Line 1 of .*models\.jsonl is no record"),
    ):
        before = (copied / name).read_text()
        (copied / name).write_text(content)
        with pytest.raises(CheckpointError, match=message):
            Zoo.open(copied)
        (copied / name).write_text(before)
    (copied / "models.jsonl").unlink()
    with pytest.raises(CheckpointError, match="interrupted before a model was finished"):
        Zoo.open(copied)


def test_an_empty_selection_says_so(tiny_zoo: Zoo) -> None:
    nothing = tiny_zoo.select(min_accuracy=2.0)
    assert len(nothing) == 0
    with pytest.raises(CheckpointError, match="loosen the filters"):
        nothing.stacked()


def test_rows_survive_json(tiny_zoo: Zoo) -> None:
    row = tiny_zoo.rows[0]
    assert ZooRow.from_dict(json.loads(json.dumps(row.to_dict()))) == row
    assert row.to_dict()["generalization_gap"] == row.generalization_gap

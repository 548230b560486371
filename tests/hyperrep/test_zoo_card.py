"""The README.md of a zoo: what it must say, and that whatever makes a zoo writes it."""

from pathlib import Path

import pytest
from huggingface_hub import DatasetCard
from tiny_zoo import build_tiny_zoo

from hf_paraminit.hyperrep.zoo import Zoo
from hf_paraminit.hyperrep.zoo_card import accuracies, render
from hf_paraminit.hyperrep.zoo_import import export_zoo, import_zoo


def test_a_built_zoo_has_a_card_that_the_hub_reads(tiny_zoo: Zoo) -> None:
    card = DatasetCard.load(tiny_zoo.folder / "README.md")
    assert card.data.tags == ["hf_paraminit", "model-zoo", "weight-space-learning"]
    splits = {split: len(tiny_zoo.select(split=split).model_ids) for split in ("train", "validation", "test")}
    for text in (
        "# Model zoo of cnn-tiny on prototypes",
        "8 networks of one architecture",
        "1, 2, 3. A model belongs to one split",
        f"{splits['train']} train, {splits['validation']} validation, {splits['test']} test",
        "| learning_rate | 0.004 |",
        "| seeds | 8 |",
        "build_zoo",
    ):
        assert text in card.text
    test_accuracy = accuracies(tiny_zoo.select(epochs=[3]))["test_accuracy"]
    assert test_accuracy is not None
    assert f"{100 * test_accuracy['mean']:.1f} ± {100 * test_accuracy['std']:.1f}" in card.text


def test_finishing_a_build_again_writes_the_same_card(tmp_path: Path) -> None:
    zoo = build_tiny_zoo(tmp_path / "zoo", 4)
    first = (zoo.folder / "README.md").read_text()
    (zoo.folder / "README.md").unlink()
    build_tiny_zoo(tmp_path / "zoo", 4)
    assert (zoo.folder / "README.md").read_text() == first == render(zoo)


def test_an_imported_zoo_says_where_it_came_from_and_what_is_unknown(tiny_zoo: Zoo, tmp_path: Path) -> None:
    export_zoo(tiny_zoo, tmp_path / "published")
    for path in tmp_path.glob("published/*/result.json"):
        path.write_text(path.read_text().replace('"train_acc"', '"something_else"'))
    zoo = import_zoo(tmp_path / "published", tmp_path / "imported", architecture="cnn-tiny")
    card = (zoo.folder / "README.md").read_text()
    assert "Imported from the published layout, folder `published`" in card
    assert "| 3 | - |" in card


def test_models_that_were_left_out_are_named(tiny_zoo: Zoo) -> None:
    zoo = Zoo(tiny_zoo.folder, tiny_zoo.card, tiny_zoo.tensors, tiny_zoo.rows[3:], ["model-00000 lacks epoch 2"])
    assert "Left out: model-00000 lacks epoch 2." in render(zoo)


@pytest.mark.parametrize("command", ["paraminit zoo build cnn-tiny --grid '{\"a\": [1]}' --output $HOME"])
def test_the_command_is_shown_as_it_was_given(tiny_zoo: Zoo, command: str) -> None:
    zoo = Zoo(tiny_zoo.folder, {**tiny_zoo.card, "command": command}, tiny_zoo.tensors, tiny_zoo.rows)
    assert f"```\n{command}\n```" in render(zoo)

"""`init="hyperrep-sample"`: what is sampled, what is kept, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tiny_representation import representation_of, tiny_net, tiny_representation
from torch import nn
from transformers import AutoModelForImageClassification, ResNetConfig

import hf_paraminit
from hf_paraminit.errors import InitializerConfigError, PredictionError, PredictorNotFoundError
from hf_paraminit.hyperrep.model import HyperRepresentation
from hf_paraminit.initializers import hyperrep_sample
from hf_paraminit.initializers.hyperrep_sample import HyperRepSample


@pytest.fixture
def folder(tmp_path: Path) -> str:
    tiny_representation().save_pretrained(tmp_path / "r")
    return str(tmp_path / "r")


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def test_the_architecture_of_the_zoo_is_sampled_whole(folder: str) -> None:
    model = tiny_net()
    report = hf_paraminit.initialize(model, "hyperrep-sample", source=folder, seed=3)
    assert set(report.predicted) == {"0.weight", "0.bias", "3.weight", "6.weight", "6.bias"}
    assert set(report.kept) == {"1.weight", "1.bias"}
    assert report.kept["1.weight"] == "norm layers are left out"
    expected = HyperRepresentation.from_pretrained(folder).sample(1, seed=3).weights
    assert all(torch.equal(model.get_parameter(name), expected[name][0]) for name in report.predicted)
    assert report.sha256
    assert any("recalibrate_batchnorm" in note for note in report.notes)


def test_every_way_to_name_it_gives_the_same_weights(folder: str) -> None:
    ways: list[tuple[Any, dict[str, Any]]] = [
        ("hyperrep-sample", {"source": folder}),
        ("hyperrep-sample", {"source": f"local-dir:{folder}"}),
        (f"local-dir:{folder}", {}),
        (HyperRepSample(predictor=HyperRepresentation.from_pretrained(folder)), {}),
        (hf_paraminit.load_predictor(folder), {}),
    ]
    found = []
    for init, settings in ways:
        model = tiny_net()
        hf_paraminit.initialize(model, init, seed=7, **settings)
        found.append(model.get_parameter("3.weight").detach())
    assert all(torch.equal(found[0], other) for other in found)


def test_a_classifier_for_other_classes_keeps_its_own_start(folder: str) -> None:
    model = tiny_net(num_classes=9)
    before = parameters(model)
    report = hf_paraminit.initialize(model, "hyperrep-sample", source=folder)
    assert report.kept["6.weight"] == report.kept["6.bias"] == "the classifier is for other classes"
    assert torch.equal(model.get_parameter("6.weight"), before["6.weight"])
    assert not torch.equal(model.get_parameter("0.weight"), before["0.weight"])


def test_another_architecture_is_refused_by_the_name_of_its_layer(folder: str) -> None:
    model = tiny_net()
    model[3] = nn.Conv2d(6, 6, 5, bias=False)
    before = parameters(model)
    with pytest.raises(
        PredictionError, match=r"tiny_net.*in 1 layers: 3\.weight \(6, 6, 5, 5\), expected .*\(6, 6, 3, 3"
    ):
        hf_paraminit.initialize(model, "hyperrep-sample", source=folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_policy_layers_samples_what_fits_and_reports_the_rest(folder: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, bias=False), nn.Conv2d(6, 6, 3, bias=False), nn.Conv2d(6, 7, 1),
        nn.Flatten(), nn.Linear(7, 4),
    )  # fmt: skip
    report = hf_paraminit.initialize(model, "hyperrep-sample", source=folder, policy="layers")
    assert set(report.predicted) == {"0.weight", "0.bias", "1.weight", "2.weight"}
    assert "sampled as 3.weight" in report.predicted["1.weight"]
    assert report.kept["3.weight"] == "no layer of this kind and shape in the zoo's architecture"
    assert report.kept["5.weight"] == "classifiers are not taken from another architecture"
    assert torch.equal(model.get_parameter("1.weight"), model.get_parameter("2.weight"))


def test_norms_that_are_tokens_are_sampled_too(tmp_path: Path) -> None:
    tiny_representation(norms="packed").save_pretrained(tmp_path / "r")
    report = hf_paraminit.initialize(tiny_net(), "hyperrep-sample", source=str(tmp_path / "r"))
    assert not report.kept


def test_only_named_parameters_are_written(folder: str) -> None:
    model = tiny_net()
    before = parameters(model)
    report = hf_paraminit.initialize(model, "hyperrep-sample", source=folder, names=["3.weight"])
    assert list(report.predicted) == ["3.weight"]
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"3.weight"}


def labelled(num: int = 32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(num, 3, 8, 8, generator=generator), torch.randint(4, (num,), generator=generator))
        for _ in range(2)
    ]


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_best_candidate_on_data_is_at_least_as_good_as_one_draw(folder: str, rounds: int) -> None:
    data, model = labelled(), tiny_net()
    before = parameters(model)
    settings: dict[str, Any] = {"source": folder, "data": data, "bandwidth": 1.0}
    report = hf_paraminit.initialize(model, "hyperrep-sample", candidates=20, rounds=rounds, **settings)
    note = next(note for note in report.notes if note.startswith("best of 20 candidates"))
    accuracy = float(note.split("accuracy ")[1].split()[0])
    assert accuracy >= 0.25  # of four classes, the best of many random networks
    assert torch.equal(model.state_dict()["1.running_mean"], before["1.running_mean"])
    again = tiny_net()
    hf_paraminit.initialize(again, "hyperrep-sample", candidates=20, rounds=rounds, **settings)
    assert torch.equal(model.get_parameter("0.weight"), again.get_parameter("0.weight"))


def test_settings_that_cannot_work_are_refused_before_a_model_is_touched(folder: str) -> None:
    refused: list[dict[str, Any]] = [
        {"candidates": 5}, {"data": labelled()}, {"bandwidth": -1.0}, {"best_share": 0.0}, {"rounds": 0},
        {"method": "gan"}, {"policy": "guess"},
    ]  # fmt: skip
    for settings in refused:
        with pytest.raises(InitializerConfigError):
            HyperRepSample(source=folder, **settings)
    with pytest.raises(PredictionError, match="gave no batches"):
        hf_paraminit.initialize(tiny_net(), "hyperrep-sample", source=folder, candidates=3, data=[])


def test_without_any_representation_the_message_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hyperrep_sample, "BUILTIN_FOLDER", tmp_path)
    with pytest.raises(PredictorNotFoundError, match=r"paraminit zoo build.*paraminit train hyperrep"):
        hf_paraminit.initialize(tiny_net(), "hyperrep-sample")
    with pytest.raises(PredictorNotFoundError, match="nowhere"):
        hf_paraminit.initialize(tiny_net(), "hyperrep-sample", source="local-dir:/nowhere")


def test_what_ships_is_found_by_name_unless_a_folder_of_that_name_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_representation().save_pretrained(tmp_path / "shipped" / "small")
    tiny_representation(num_anchors=2).save_pretrained(tmp_path / "own" / "small")
    monkeypatch.setattr(hyperrep_sample, "BUILTIN_FOLDER", tmp_path / "shipped")
    expected = str(tmp_path / "shipped" / "small")
    assert hf_paraminit.initialize(tiny_net(), "hyperrep-sample", source="small").predictor == expected
    assert hf_paraminit.initialize(tiny_net(), "hyperrep-sample").predictor == expected  # by architecture
    monkeypatch.chdir(tmp_path / "own")
    assert hf_paraminit.initialize(tiny_net(), "hyperrep-sample", source="small").predictor == "small"


def test_the_architecture_decides_which_of_several_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_representation().save_pretrained(tmp_path / "a")
    wide = representation_of(lambda: tiny_net(width=8), norms="packed", architecture="wide tiny_net")
    wide.save_pretrained(tmp_path / "b")
    monkeypatch.setattr(hyperrep_sample, "BUILTIN_FOLDER", tmp_path)
    for width, folder in ((6, "a"), (8, "b")):
        assert hf_paraminit.initialize(tiny_net(width=width), "hyperrep-sample").predictor == str(tmp_path / folder)
    with pytest.raises(PredictorNotFoundError, match="tiny_net or wide tiny_net"):
        hf_paraminit.initialize(tiny_net(width=7), "hyperrep-sample")


def test_a_representation_that_was_written_anew_is_read_anew(folder: str) -> None:
    first, second = tiny_net(), tiny_net()
    hf_paraminit.initialize(first, "hyperrep-sample", source=folder)
    tiny_representation(num_anchors=2).save_pretrained(folder)
    hf_paraminit.initialize(second, "hyperrep-sample", source=folder)
    assert not torch.equal(first.get_parameter("0.weight"), second.get_parameter("0.weight"))


def test_timm_builds_it_with_and_without_the_draws_that_are_overwritten(tmp_path: Path) -> None:
    representation_of(lambda: timm.create_model("test_resnet", num_classes=4), token_dim=144).save_pretrained(tmp_path)
    found = []
    for fast in (True, False):
        torch.manual_seed(0)
        settings = {"source": str(tmp_path), "fast": fast}
        model = timm.create_model("test_resnet", num_classes=4, init="hyperrep-sample", init_kwargs=settings)
        assert "layer1.0.conv1.weight" in model._hf_paraminit.predicted  # type: ignore[union-attr]
        found.append(model.state_dict())
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_transformers_builds_it_from_a_config(tmp_path: Path) -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    build = AutoModelForImageClassification.from_config
    representation_of(lambda: build(config), norms="packed").save_pretrained(tmp_path)
    hf_paraminit.install()
    model = build(config, init=f"local-dir:{tmp_path}")
    report = model._hf_paraminit
    assert not report.kept
    config.num_labels = 5
    assert len(build(config, init=f"local-dir:{tmp_path}")._hf_paraminit.kept) == 2

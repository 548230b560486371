import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import Tensor, nn

from hf_paraminit.cli.main import main
from hf_paraminit.ghn.model import GHN
from hf_paraminit.initializers import registry
from hf_paraminit.initializers.base import Initializer, InitializerConfig
from hf_paraminit.initializers.graph_hypernetwork import PredictorFile
from hf_paraminit.initializers.registry import initializer_info, list_initializers, register_initializer


def output_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_list_has_one_row_per_initializer(capsys: pytest.CaptureFixture[str]) -> None:
    header, *rows = output_of(capsys, "list").splitlines()
    assert header.split() == ["NAME", "VARIANTS", "PAPER", "SUMMARY"]
    assert [row.split()[0] for row in rows] == list_initializers()
    assert len(rows) >= 4
    (ghn3,) = (row for row in rows if row.startswith("ghn3 "))
    card = initializer_info("ghn3")
    assert ghn3.split("  ")[0] == "ghn3"
    assert ", ".join(card.variants) in ghn3
    assert card.summary in ghn3
    assert "2303.04143" in ghn3


def test_list_as_json_and_by_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    cards = json.loads(output_of(capsys, "list", "--json"))
    assert [card["name"] for card in cards] == list_initializers()
    assert all(card["summary"] for card in cards)
    some = json.loads(output_of(capsys, "list", "GHN_*", "--json"))
    assert [card["name"] for card in some] == ["ghn-mlp"]
    assert output_of(capsys, "list", "nothing*") == ""
    assert json.loads(output_of(capsys, "list", "nothing*", "--json")) == []


@pytest.mark.parametrize("name", list_initializers())
def test_info_explains_every_setting(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(output_of(capsys, "info", name, "--json"))
    assert record["name"] == name
    assert set(record["predictors"]) == (set(record["variants"]) if name.startswith("ghn") else set())
    assert {"seed", "device"} <= {setting["name"] for setting in record["settings"]}
    for setting in record["settings"]:
        assert setting["meaning"], f"{name}: the docstring of Config says nothing about {setting['name']}"
    text = output_of(capsys, "info", name)
    for setting in record["settings"]:
        assert f"\n{setting['name']} " in text


def test_info_shows_defaults_and_places(capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(output_of(capsys, "info", "GHN-3:tm8", "--json"))
    settings = {setting["name"]: setting for setting in record["settings"]}
    assert settings["variant"]["default"] == "builtin"
    assert settings["seed"]["default"] == 0
    assert settings["seed"]["type"] == "int"
    assert record["predictors"]["tm8"]["filename"] == "ghn3tm8.pt"
    assert record["predictors"]["tm8"]["location"].endswith("/SamsungSAILMontreal/ghn3")


def test_info_shows_size_and_metrics_of_a_built_in_predictor(
    tiny_ghn: GHN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ghn = GHN.new(tiny_ghn.config, seed=1)
    ghn.metadata = {"training": {"steps": 12, "data": "synthetic"}, "metrics": {"digits": {"accuracy": 0.75}}}
    ghn.save_pretrained(tmp_path)
    kind = type(registry.create("ghn3"))
    monkeypatch.setattr(kind, "files", {**kind.files, "builtin": PredictorFile(folder=tmp_path)})
    builtin = json.loads(output_of(capsys, "info", "ghn3", "--json"))["predictors"]["builtin"]
    assert builtin["bytes"] == (tmp_path / "model.safetensors").stat().st_size
    assert builtin["metadata"] == ghn.metadata
    text = output_of(capsys, "info", "ghn3")
    assert "in the package, 0." in text
    assert "\n  metrics:\n    digits:\n      accuracy: 0.75\n" in text


def test_info_of_a_method_whose_settings_have_no_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    @register_initializer("needs-donor", summary="slices of a donor")
    class NeedsDonor(Initializer):
        @dataclass(frozen=True, kw_only=True, slots=True)
        class Config(InitializerConfig):
            donor: str

        def predict(self, target: nn.Module, names: object) -> dict[str, Tensor]:
            return {}

    text = output_of(capsys, "info", "needs-donor")
    assert "slices of a donor" in text
    assert "donor" in text.partition("note")[2]


def test_info_of_an_unknown_name_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "gnh3"]) == 1
    assert "Did you mean 'ghn3'" in capsys.readouterr().err

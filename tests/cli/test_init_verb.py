import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, AutoModelForMaskedImageModeling, ViTConfig, ViTImageProcessor

import hf_paraminit
from hf_paraminit.cli.main import main

REOPEN = """
import hashlib, json, sys
import timm
digests = {}
for folder in sys.argv[1:]:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    digests[folder] = digest.hexdigest()
assert "hf_paraminit" not in sys.modules
print(json.dumps(digests))
"""
REOPEN_TRANSFORMERS = """
import sys
from transformers import AutoImageProcessor, AutoModelForImageClassification
model, info = AutoModelForImageClassification.from_pretrained(sys.argv[1], output_loading_info=True)
assert not any(info.values()), info
AutoImageProcessor.from_pretrained(sys.argv[1])
assert "hf_paraminit" not in sys.modules
"""
VIT = ViTConfig(
    hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
)
MODELS = {
    "test_resnet": {},
    "test_vit": {"num_classes": 7, "img_size": 64},
    "resnet18": {"num_classes": 3, "in_chans": 1},
    "coat_tiny": {"drop_rate": 0.1},  # has tied parameters
}


def command(model: str, predictor: Path, output: Path, *more: str) -> list[str]:
    return ["init", model, "--init", f"local-dir:{predictor}", "--output", str(output), *more]


def digest_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def test_timm_alone_reopens_the_folders(predictor_folder: Path, tmp_path: Path) -> None:
    folders = {}
    for name, model_kwargs in MODELS.items():
        folders[name] = tmp_path / name
        sizes = [f"--{key.replace('_', '-')}={value}" for key, value in model_kwargs.items() if key != "drop_rate"]
        rest = {key: value for key, value in model_kwargs.items() if key == "drop_rate"}
        words = command(name, predictor_folder, folders[name], "--model-kwargs", json.dumps(rest), *sizes)
        assert main(words) == 0
        assert sorted(path.name for path in folders[name].iterdir()) == ["config.json", "model.safetensors"]
        assert "init" not in json.loads((folders[name] / "config.json").read_text()).get("model_args", {})
    words = [sys.executable, "-c", REOPEN, *map(str, folders.values())]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {str(folder): digest_of(folder) for folder in folders.values()}


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_the_weights_are_those_of_create_model(name: str, predictor_folder: Path, tmp_path: Path) -> None:
    assert main(command(name, predictor_folder, tmp_path / "out", "--num-classes", "5")) == 0
    expected = hf_paraminit.create_model(name, num_classes=5, init=f"local-dir:{predictor_folder}")
    written = load_file(tmp_path / "out" / "model.safetensors")
    report = expected._hf_paraminit
    assert set(written) == set(expected.state_dict())
    assert report.predicted
    for parameter in report.predicted:
        assert torch.equal(written[parameter], expected.state_dict()[parameter]), parameter


def test_json_is_the_only_output_and_holds_the_report(
    predictor_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--json", "--seed", "5", "--init-kwargs", '{"predict_class_layers": false}']
    assert main(command("test_resnet", predictor_folder, tmp_path / "out", *words)) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["model"], record["output"]) == ("test_resnet", str(tmp_path / "out"))
    assert record["report"]["seed"] == 5
    assert set(record["report"]["kept"]) == {"fc.weight", "fc.bias"}


def test_text_shows_the_report_and_the_way_to_open(
    predictor_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("test_resnet", predictor_folder, tmp_path / "out")) == 0
    out = capsys.readouterr().out
    assert "47 predicted, 0 kept, 0 refused" in out
    assert f'timm.create_model("local-dir:{tmp_path / "out"}", pretrained=True)' in out


def test_the_seed_decides_what_the_predictor_leaves_out_too(predictor_folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        torch.manual_seed(len(name))
        assert main(command("test_vit", predictor_folder, tmp_path / name, "--seed", seed)) == 0
        torch.rand(1)
    first, again, other = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pos_embed"], other["pos_embed"])  # not predicted: drawn by timm


def test_the_callers_random_state_stays(predictor_folder: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    assert main(command("test_resnet", predictor_folder, tmp_path / "out")) == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_an_existing_folder_keeps_its_other_files(predictor_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(command("test_resnet", predictor_folder, tmp_path)) == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).num_classes == 1000


FAILURES: dict[str, tuple[list[str], str]] = {
    "unknown model": (["test_resnt", "--init", "PREDICTOR"], "has no model 'test_resnt'. Did you mean 'test_resnet'"),
    "unknown tag": (["test_resnet.nonsense_tag", "--init", "PREDICTOR"], "could not build 'test_resnet.nonsense_tag'"),
    "unprefixed path": (["some/model", "--init", "PREDICTOR"], "'local-dir:some/model'"),
    "unknown initializer": (["test_resnet", "--init", "ghn33"], "no initializer 'ghn33'. Did you mean 'ghn3'"),
    "unknown variant": (["test_resnet", "--init", "ghn3:tm9"], "no variant 'tm9'"),
    "no predictor": (["test_resnet", "--init", "local-dir:/nowhere/at/all"], "/nowhere/at/all"),
    "unknown setting": (
        ["test_resnet", "--init", "ghn3", "--init-kwargs", '{"sed": 1}'],
        "does not take 'sed'",
    ),
    "argument of other models": (["test_resnet", "--init", "PREDICTOR", "--img-size", "64"], "'img_size'"),
    "unknown argument": (["test_resnet", "--init", "PREDICTOR", "--model-kwargs", '{"x": 1}'], "'x'"),
    "size that does not fit": (
        ["test_vit", "--init", "PREDICTOR", "--img-size", "3"],
        "Cannot trace VisionTransformer",
    ),
    "feature extractor": (
        ["test_resnet", "--init", "PREDICTOR", "--model-kwargs", '{"features_only": true}'],
        "config.json",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_is_one_line_and_leaves_nothing(
    case: str, predictor_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = FAILURES[case]
    words = [f"local-dir:{predictor_folder}" if word == "PREDICTOR" else word for word in words]
    assert main(["init", *words, "--output", str(tmp_path / "new" / "out")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("paraminit: error: ")
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["--init-kwargs", "{"],
        ["--init-kwargs", "[1]"],
        ["--model-kwargs", "nonsense"],
        ["--seed", "-1"],
        ["--seed", "x"],
        ["--num-classes", "1.5"],
        ["--img-size", "0"],
    ],
)
def test_malformed_values_are_usage_errors(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["init", "test_resnet", "--init", "ghn3", "--output", str(tmp_path / "out"), *words])
    assert exit_.value.code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_not_taken_for_the_output_folder(
    predictor_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(command("test_resnet", predictor_folder, tmp_path / "file")) == 1
    assert "is a file; name a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def limit_file_size() -> Callable[[], None]:
    """A disk that is full after 100 kB: too small for the weights, large enough for everything else."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_full_disk_leaves_what_was_there(predictor_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "existing"
    assert main(command("test_resnet", predictor_folder, folder, "--seed", "1")) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for output in (folder, tmp_path / "new"):
        words = command("test_vit", predictor_folder, output)
        done = subprocess.run(
            [sys.executable, "-m", "hf_paraminit", *words],
            preexec_fn=limit_file_size(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        assert done.stdout == ""
        assert done.stderr.splitlines()[-1].startswith(f"paraminit: error: Could not write {output}: File too large.")
    assert [path.name for path in tmp_path.iterdir()] == ["existing"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# Transformers


@pytest.fixture
def config_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "config"
    VIT.save_pretrained(folder)
    return folder


def transformers_command(config: Path | str, predictor: Path, output: Path, *more: str) -> list[str]:
    return ["init", "--config", str(config), "--init", f"local-dir:{predictor}", "--output", str(output), *more]


def test_transformers_alone_reopens_the_folder(config_folder: Path, predictor_folder: Path, tmp_path: Path) -> None:
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(config_folder)
    output = tmp_path / "out"
    assert main(transformers_command(config_folder, predictor_folder, output, "--num-classes", "3")) == 0
    names = sorted(path.name for path in output.iterdir())
    assert names == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert len(json.loads((output / "config.json").read_text())["id2label"]) == 3
    words = [sys.executable, "-c", REOPEN_TRANSFORMERS, str(output)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_weights_are_those_of_from_config(
    config_folder: Path, predictor_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model-kwargs", '{"num_hidden_layers": 2}', "--img-size", "64", "--in-chans", "1", "--seed", "4"]
    config = config_folder / "config.json"
    assert main(transformers_command(config, predictor_folder, tmp_path / "out", *words, "--json")) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["model"] == "ViTForImageClassification"
    settings = {**VIT.to_dict(), "num_hidden_layers": 2, "image_size": 64, "num_channels": 1}
    expected = hf_paraminit.from_config(
        AutoModelForImageClassification,
        ViTConfig(**settings),
        init=f"local-dir:{predictor_folder}",
        init_kwargs={"seed": 4},
    )
    predicted = expected._hf_paraminit.predicted
    assert predicted == record["report"]["predicted"]
    written = AutoModelForImageClassification.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(written[name], expected.state_dict()[name]) for name in predicted)


def test_another_task_has_another_class(
    config_folder: Path, predictor_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--task", "masked-image-modeling"]
    assert main(transformers_command(config_folder, predictor_folder, tmp_path / "out", *words)) == 0
    opening = f'transformers.AutoModelForMaskedImageModeling.from_pretrained("{tmp_path / "out"}")'
    assert opening in capsys.readouterr().out
    model = AutoModelForMaskedImageModeling.from_pretrained(tmp_path / "out")
    assert type(model).__name__ == "ViTForMaskedImageModeling"


TRANSFORMERS_FAILURES: dict[str, tuple[list[str], str]] = {
    "no configuration": (["--config", "./nowhere/config.json"], "There is no configuration 'nowhere/config.json'"),
    "no JSON": (["--config", "BROKEN"], "could not read the configuration"),
    "foreign code": (["--config", "FOREIGN"], "could not read the configuration"),
    "unknown task": (["--config", "CONFIG", "--task", "image-clasification"], "Did you mean 'image-classification'"),
    "task of other models": (["--config", "CONFIG", "--task", "ctc"], "could not build AutoModelForCTC"),
    "unknown value": (["--config", "CONFIG", "--model-kwargs", '{"num_hidden_layer": 3}'], "Did you mean 'num_hidden"),
    "impossible value": (["--config", "CONFIG", "--model-kwargs", '{"hidden_act": "none"}'], "could not build"),
    "unknown initializer": (["--config", "CONFIG", "--init", "ghn33"], "Did you mean 'ghn3'"),
}


@pytest.mark.parametrize("case", TRANSFORMERS_FAILURES)
def test_a_transformers_failure_is_one_line_and_leaves_nothing(
    case: str, config_folder: Path, predictor_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "foreign").mkdir()
    auto_map = {"AutoConfig": "code.Config", "AutoModelForImageClassification": "code.Model"}
    (tmp_path / "foreign" / "config.json").write_text(json.dumps({"model_type": "foreign", "auto_map": auto_map}))
    (tmp_path / "foreign" / "code.py").write_text("raise SystemExit('executed')")
    before = sorted(tmp_path.rglob("*"))
    places = {"CONFIG": config_folder, "BROKEN": tmp_path / "broken.json", "FOREIGN": tmp_path / "foreign"}
    words, message = TRANSFORMERS_FAILURES[case]
    words = [str(places.get(word, word)) for word in words]
    assert main(["init", "--init", f"local-dir:{predictor_folder}", *words, "--output", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("paraminit: error: ")
    assert message in err.splitlines()[-1]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "words", [[], ["test_resnet", "--config", "x"], ["test_resnet", "--task", "image-classification"]]
)
def test_a_model_is_named_in_one_way(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["init", *words, "--init", "ghn3", "--output", str(tmp_path / "out")])
    assert exit_.value.code == 2

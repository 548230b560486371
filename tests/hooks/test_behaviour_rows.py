"""Rows of the hooks' behaviour tables that no other test shows: what is downloaded, and what is written into."""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest
import timm
import torch
import transformers
from hub_server import HubServer
from name_hash import NameHash, is_name_hashed
from timm.models import save_for_hf
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification as Auto,
    MllamaConfig,
    ViTConfig,
    pipeline,
)

from hf_paraminit import install

VIT = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
NOWHERE = "hf-hub:me/no-such-predictor"


@pytest.fixture(autouse=True)
def _installed() -> None:
    install()
    transformers.utils.logging.disable_progress_bar()
    NameHash.calls = 0


@pytest.fixture
def timm_folder(tmp_path: Path) -> Path:
    save_for_hf(timm.create_model("test_resnet", num_classes=10), str(tmp_path / "timm"), safe_serialization=True)
    return tmp_path / "timm"


@pytest.fixture
def classifier(tmp_path: Path) -> str:
    """A folder with a complete ViT of 5 classes."""
    Auto.from_config(ViTConfig(**VIT, num_labels=5)).save_pretrained(tmp_path / "vit")
    return str(tmp_path / "vit")


class Watched:
    """An initializer that remembers which objects it was shown, and where their memory was."""

    __name__ = "watched"

    def __call__(self, model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        self.seen = {name: (parameter, parameter.data_ptr()) for name, parameter in model.named_parameters()}
        return {name: torch.full(self.seen[name][0].shape, 0.125) for name in names}


# No prediction, no download


def test_a_complete_timm_checkpoint_never_asks_for_the_predictor(timm_folder: Path) -> None:
    model = timm.create_model(f"local-dir:{timm_folder}", pretrained=True, init=NOWHERE)
    assert model._hf_paraminit.predicted == {}


def test_a_complete_checkpoint_of_transformers_never_asks_for_the_predictor(classifier: str) -> None:
    assert Auto.from_pretrained(classifier, init=NOWHERE)._hf_paraminit.predicted == {}


def test_models_from_the_hub_follow_the_same_table(hub: HubServer, timm_folder: Path) -> None:
    """With weights only a new head is predicted; if they are complete, nothing is fetched; without them, everything."""
    hub.add("me/net", {path.name: path.read_bytes() for path in timm_folder.iterdir()})
    code = f"""
    import json, sys, timm, hf_paraminit
    sys.path.insert(0, {str(Path(__file__).parents[1])!r})
    from name_hash import NameHash, is_name_hashed

    def predicted(**arguments):
        model = timm.create_model("hf-hub:me/net", **arguments)
        names = [name for name, parameter in model.named_parameters() if is_name_hashed(parameter, name)]
        assert set(names) == set(model._hf_paraminit.predicted)
        return names, len(list(model.parameters()))

    print(json.dumps([
        predicted(pretrained=True, num_classes=37, init=NameHash),
        predicted(pretrained=True, init={NOWHERE!r}),
        predicted(init=NameHash),
    ]))
    """
    done = hub.run(textwrap.dedent(code))
    assert done.returncode == 0, done.stderr
    (head, _), (nothing, _), (everything, num_parameters) = json.loads(done.stdout.splitlines()[-1])
    assert head == ["fc.weight", "fc.bias"]
    assert nothing == []
    assert len(everything) == num_parameters


# What is written into


def test_values_go_into_the_parameters_that_are_there(classifier: str, timm_folder: Path) -> None:
    """Dispatch hooks, optimizers and tied layers hold on to the objects (traps H2 and T4), and to their memory."""
    for build in (
        lambda init: Auto.from_pretrained(classifier, num_labels=3, ignore_mismatched_sizes=True, init=init),
        lambda init: Auto.from_pretrained(
            classifier, num_labels=3, ignore_mismatched_sizes=True, device_map={"": "cpu"}, init=init
        ),
        lambda init: timm.create_model(f"local-dir:{timm_folder}", pretrained=True, num_classes=3, init=init),
    ):
        watched = Watched()
        model = build(watched)
        assert len(model._hf_paraminit.predicted) == 2
        for name, parameter in model.named_parameters():
            assert parameter is watched.seen[name][0]
            assert parameter.data_ptr() == watched.seen[name][1]
            assert bool((parameter == 0.125).all()) == (name in model._hf_paraminit.predicted)


def test_the_class_that_is_built_decides_not_the_config() -> None:
    """A composite config whose text part alone is built (trap H7): names are those of the text model."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    tokens = {"vocab_size": 60, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = MllamaConfig(text_config={**sizes, **tokens, "num_key_value_heads": 2, "cross_attention_layers": []})
    model = AutoModelForCausalLM.from_config(config, init=NameHash)
    assert type(model.config) is not MllamaConfig
    assert NameHash.calls == 1
    names = [name for name, _ in model.named_parameters()]
    assert not any("vision" in name for name in names)
    assert all(is_name_hashed(model.get_parameter(name), name) for name in names)


def test_a_pipeline_of_a_complete_checkpoint_predicts_nothing(classifier: str) -> None:
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(classifier)
    classify = pipeline("image-classification", model=classifier, model_kwargs={"init": NOWHERE}, device="cpu")
    assert classify.model._hf_paraminit.predicted == {}

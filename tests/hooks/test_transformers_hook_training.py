"""Models with predicted weights in Transformers' `Trainer` and `pipeline`, on generated images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from name_hash import NameHash, is_name_hashed
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    AutoModelForImageClassification as Auto,
    ResNetConfig,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    pipeline,
)

from hf_paraminit import install, load_predictor
from hf_paraminit.training.synthetic import SyntheticImages, SyntheticSpec, normalize

GHN3 = Path(__file__).parents[1] / "golden" / "checkpoints" / "ghn3_micro_joblib.pt"
VIT = ViTConfig(
    hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
)
RESNET = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=10)


class GeneratedImages(Dataset[dict[str, Tensor]]):
    """One batch of formula-made images, as the dictionaries that `Trainer` collates."""

    def __init__(self, size: int) -> None:
        images, self.labels = SyntheticImages(SyntheticSpec(size=32)).batch("train", 0, size)
        self.images = normalize(images)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


@pytest.fixture(autouse=True)
def _installed() -> None:
    install()
    transformers.utils.logging.disable_progress_bar()
    NameHash.calls = 0


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(model_init: Callable[[], nn.Module], **arguments: Any) -> Trainer:
        settings = TrainingArguments(
            output_dir=str(tmp_path / "run"),
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            logging_steps=1,
            seed=3,
            **arguments,
        )
        return Trainer(model_init=model_init, args=settings, train_dataset=GeneratedImages(32))

    return make


def test_a_short_run_starts_from_the_predicted_weights(trainer: Callable[..., Trainer]) -> None:
    init = load_predictor(GHN3)
    built = []

    def model_init() -> nn.Module:
        model = Auto.from_config(RESNET, init=init)
        built.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
        return model

    run = trainer(model_init, max_steps=4, save_strategy="no")
    result = run.train()
    assert len(built) == 2  # once by the constructor and once by train()
    assert all(torch.equal(built[0][name], built[1][name]) for name in built[0])
    assert result.global_step == 4
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert len(losses) == 4
    assert all(torch.isfinite(torch.tensor(losses)))
    moved = [name for name, parameter in run.model.named_parameters() if not torch.equal(parameter, built[0][name])]
    assert {name.split(".")[0] for name in moved} == {"resnet", "classifier"}


def test_a_resumed_run_continues_from_its_checkpoint(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    def model_init() -> nn.Module:
        return Auto.from_config(RESNET, init=NameHash)

    whole = trainer(model_init, max_steps=4, save_strategy="steps", save_steps=2)
    whole.train()
    again = trainer(model_init, max_steps=4, save_strategy="no")
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert NameHash.calls == 4
    for (name, left), right in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(left, right), name
    assert not is_name_hashed(again.model.get_parameter("classifier.1.bias"), "classifier.1.bias")


def test_pipeline(tmp_path: Path) -> None:
    from PIL import Image

    ViTModel(VIT, add_pooling_layer=False).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    classify = pipeline("image-classification", model=str(tmp_path), model_kwargs={"init": NameHash}, device="cpu")
    assert set(classify.model._hf_paraminit.predicted) == {"classifier.weight", "classifier.bias"}
    assert is_name_hashed(classify.model.classifier.weight, "classifier.weight")
    scores = [entry["score"] for entry in classify(Image.new("RGB", (40, 40)))]
    assert scores == pytest.approx([0.5, 0.5])  # every class has the same weights

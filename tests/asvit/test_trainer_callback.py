"""Progressive tokenisation inside the Trainer of Transformers."""

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from hf_paraminit.asvit.errors import ScoreError
from hf_paraminit.asvit.trainer_callback import ProgressiveTokenization

NUM_IMAGES, BATCH_SIZE = 12, 4  # three steps an epoch


class Images(Dataset):
    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        pixels = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index))
        return {"pixel_values": pixels, "labels": torch.tensor(index % 4)}


class Classifier(nn.Module):
    """A timm model as the Trainer calls it, which notes the stride of every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 4}
        self.vit = timm.create_model("vit_tiny_patch16_224", **sizes)
        self.trained: list[int] = []
        self.evaluated: list[int] = []

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        strides = self.trained if self.training else self.evaluated
        strides.append(self.vit.patch_embed.proj.stride[0])
        logits = self.vit(pixel_values)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def trainer(model: nn.Module, folder: Path, callback: ProgressiveTokenization, **changes) -> Trainer:
    settings = {
        "output_dir": str(folder),
        "num_train_epochs": 4,
        "per_device_train_batch_size": BATCH_SIZE,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 5,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
        **changes,
    }
    arguments = TrainingArguments(**settings)
    return Trainer(model, arguments, train_dataset=Images(), eval_dataset=Images(), callbacks=[callback])


def test_coarse_training_and_evaluation_at_the_models_own_tokens(tmp_path: Path, capsys) -> None:
    model = Classifier()
    trainer(model, tmp_path, ProgressiveTokenization()).train()
    assert model.trained == 3 * [16] + 2 * [8] + 7 * [4]  # of 12 steps; the shares are 80/300 and 132/300
    assert model.evaluated
    assert set(model.evaluated) == {4}
    assert model.vit.patch_embed.proj.stride == (4, 4)
    printed = capsys.readouterr().out
    assert "Progressive tokenisation: stride 16 for 3 steps (" in printed
    assert "stride 4 for 7 steps" in printed


def test_a_resumed_run_goes_on_at_the_right_level(tmp_path: Path) -> None:
    levels = ((0.0, 8), (0.5, 4))
    whole, resumed = Classifier(), Classifier()
    trainer(whole, tmp_path / "whole", ProgressiveTokenization(levels)).train()
    again = trainer(resumed, tmp_path / "resumed", ProgressiveTokenization(levels))
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert whole.trained == 6 * [8] + 6 * [4]
    assert resumed.trained == 1 * [8] + 6 * [4]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_refusals_come_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ScoreError, match="begin at 0"):
        trainer(Classifier(), tmp_path, ProgressiveTokenization(((0.5, 4),))).train()
    model = nn.Linear(2, 2)
    with pytest.raises(ScoreError, match="found Linear"):
        trainer(model, tmp_path, ProgressiveTokenization()).train()

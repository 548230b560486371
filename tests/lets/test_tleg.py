import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import hf_paraminit
from hf_paraminit.errors import (
    CheckpointError,
    InitializerConfigError,
    PredictionError,
    PredictorNotFoundError,
    TrainingConfigError,
)
from hf_paraminit.initializers.tleg import TLEGInitializer
from hf_paraminit.lets.aux_net import TLEGAuxNet
from hf_paraminit.lets.distillation import Distillation
from hf_paraminit.lets.tleg import TLEG, TLEGConfig
from hf_paraminit.lets.train import TLEGTraining, label_accuracy, train_learngene
from hf_paraminit.training.loop import TrainingConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "lets" / "tleg"
META = json.loads((GOLDEN / "meta.json").read_text())
SIZES = {name: META[name] for name in ("embed_dim", "num_heads", "img_size", "patch_size", "num_classes")}


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(GOLDEN / "io.safetensors")


@pytest.fixture(scope="module")
def learngene() -> TLEG:
    return TLEG.from_state_dict(load_file(GOLDEN / "learngene.safetensors"), SIZES)


def vit(depth: int, *, fc_norm: bool, eps: float, **settings: int) -> VisionTransformer:
    sizes = {"img_size": META["img_size"], "embed_dim": META["embed_dim"], "num_heads": META["num_heads"]}
    return VisionTransformer(
        **{**sizes, "num_classes": META["num_classes"], **settings},
        depth=depth,
        class_token=False,
        global_pool="avg",
        fc_norm=fc_norm,
        norm_layer=lambda size, **kwargs: nn.LayerNorm(size, eps=eps, **kwargs),
    ).eval()


def test_published_names_go_there_and_back(learngene: TLEG) -> None:
    published = load_file(GOLDEN / "learngene.safetensors")
    ours = learngene.to_published()
    assert ours.keys() == published.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in published.items())


def test_descendant_weights_are_the_recorded_ones(learngene: TLEG) -> None:
    model = vit(3, fc_norm=True, eps=META["des_ln_eps"])
    report = hf_paraminit.initialize(model, TLEGInitializer(predictor=learngene))
    recorded = load_file(GOLDEN / "des_L3.safetensors")
    assert set(report.predicted) == set(recorded)
    for name, tensor in recorded.items():
        torch.testing.assert_close(model.get_parameter(name).detach(), tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("depth", META["des_depths"])
def test_descendants_give_the_recorded_scores(learngene: TLEG, recorded: dict[str, Tensor], depth: int) -> None:
    model = vit(depth, fc_norm=True, eps=META["des_ln_eps"])
    hf_paraminit.initialize(model, TLEGInitializer(predictor=learngene))
    torch.testing.assert_close(model(recorded["x"]), recorded[f"des_L{depth}_logits"], rtol=0, atol=1e-4)


def test_norm_before_pooling_gives_the_auxiliary_net(learngene: TLEG, recorded: dict[str, Tensor]) -> None:
    model = vit(META["aux_depth"], fc_norm=False, eps=META["aux_ln_eps"])
    hf_paraminit.initialize(model, TLEGInitializer(predictor=learngene))
    torch.testing.assert_close(model(recorded["x"]), recorded["aux_logits"], rtol=0, atol=1e-4)


def test_a_new_learngene_starts_as_published_and_is_trainable() -> None:
    torch.manual_seed(0)
    network = TLEG(TLEGConfig(embed_dim=64, num_heads=1, img_size=32, patch_size=16, num_classes=3))
    assert 0.015 < network.base.get_parameter("mlp.fc1.weight").std() < 0.025
    assert torch.equal(network.slope.norm1.weight, torch.zeros(64))
    assert torch.equal(network.base.norm1.weight, torch.ones(64))
    slots = network.materialize(2)
    sum(tensor.square().sum() for tensor in slots.values()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert torch.equal(slots["blocks.0.mlp.fc1.weight"], network.base.get_parameter("mlp.fc1.weight"))


def test_the_auxiliary_net_of_the_training_is_the_recorded_one(learngene: TLEG, recorded: dict[str, Tensor]) -> None:
    net = TLEGAuxNet(learngene, depth=META["aux_depth"]).eval()
    assert dict(net.named_parameters()).keys() == {f"generator.{name}" for name, _ in learngene.named_parameters()}
    torch.testing.assert_close(net(recorded["x"]), recorded["aux_logits"], rtol=0, atol=1e-4)


def test_training_learns_and_is_resumed(tmp_path: Path) -> None:
    config = TLEGConfig(embed_dim=32, num_heads=2, img_size=16, patch_size=8, num_classes=3, gene_init="scaled")

    def batch_at(index: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(12) % 3
        images = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(index))
        images[torch.arange(12), labels] += 1.5
        return images, labels

    def run(folder: str, **changes: int) -> tuple[TLEGTraining, TLEG]:
        objective = TLEGTraining(TLEG.new(config, seed=0), depth=3)
        settings = {"steps": 40, "learning_rate": 3e-3, "warmup_steps": 2, "gradient_clip": 1.0, **changes}
        run_settings = TrainingConfig(output=str(tmp_path / folder), cpu=True, **settings)
        return objective, train_learngene(objective, batch_at, run_settings)

    objective, whole = run("whole")
    assert label_accuracy(objective.aux_net, [batch_at(index) for index in range(100, 104)]) > 80
    run("parts", stop_after=20)
    _, resumed = run("parts")
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    before = TLEG.new(config, seed=0).state_dict()
    still = [name for name, value in whole.state_dict().items() if torch.equal(value, before[name])]
    assert still == []


def test_a_teacher_of_other_classes_is_refused() -> None:
    config = TLEGConfig(embed_dim=32, num_heads=2, img_size=16, patch_size=8, num_classes=3)
    teacher = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(12, 4))
    with pytest.raises(TrainingConfigError, match=r"expected \(1, 3\)"):
        TLEGTraining(TLEG.new(config, seed=0), distillation=Distillation(), teacher=teacher)
    with pytest.raises(CheckpointError, match="gene_init"):
        TLEGConfig(gene_init="large")  # type: ignore[arg-type]


def test_files_of_both_kinds_and_hosts_are_read(learngene: TLEG, tmp_path: Path) -> None:
    learngene.save_pretrained(tmp_path / "folder")
    settings = {"img_size": 48, "embed_dim": 24, "num_heads": 3, "depth": 2, "num_classes": 6}
    options = {"class_token": False, "global_pool": "avg", **settings}
    model = timm.create_model("vit_tiny_patch16_224", init=f"local-dir:{tmp_path / 'folder'}", **options)
    tensors = load_file(GOLDEN / "learngene.safetensors")
    assert torch.equal(model.blocks[0].mlp.fc1.weight, tensors["blocks.block.mlp.fc1.instances.0.weight_base"])
    torch.save({"model": tensors}, tmp_path / "published.pth")
    again = timm.create_model(
        "vit_tiny_patch16_224", init="tleg", init_kwargs={"source": str(tmp_path / "published.pth")}, **options
    )
    assert torch.equal(model.blocks[1].attn.qkv.weight, again.blocks[1].attn.qkv.weight)


def test_tokens_and_other_classes_stay_as_the_model_made_them(learngene: TLEG) -> None:
    torch.manual_seed(0)
    settings = {"img_size": 48, "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 3}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=9, **settings)
    before = model.pos_embed.clone()
    report = hf_paraminit.initialize(model, TLEGInitializer(predictor=learngene))
    assert torch.equal(model.pos_embed, before)
    assert "6 classes, the model's 9" in report.kept["head.weight"]
    assert {"cls_token", "pos_embed", "head.weight", "head.bias"} == set(report.kept)


def test_what_cannot_be_made_is_refused_before_anything_is_written(learngene: TLEG) -> None:
    for model in (vit(2, fc_norm=True, eps=1e-6, embed_dim=48), timm.create_model("test_resnet")):
        before = [parameter.clone() for parameter in model.parameters()]
        with pytest.raises(PredictionError, match=r"(n|N)othing was written"):
            hf_paraminit.initialize(model, TLEGInitializer(predictor=learngene))
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    with pytest.raises(InitializerConfigError, match="depth 0"):
        learngene.materialize(0)
    with pytest.raises(PredictorNotFoundError, match="needs a TLEG learngene"):
        hf_paraminit.initialize(vit(2, fc_norm=True, eps=1e-6), "tleg")


@pytest.mark.parametrize("fault", ["truncated", "foreign", "spoilt", "swapped"])
def test_damaged_files_are_refused(tmp_path: Path, fault: str) -> None:
    tensors = load_file(GOLDEN / "learngene.safetensors")
    if fault == "truncated":
        del tensors["blocks.block.mlp.fc2.instances.0.weight_ilayer"]
    elif fault == "foreign":
        tensors = {"fc.weight": torch.zeros(3, 3)}
    elif fault == "spoilt":
        tensors["norm.weight"][3] = torch.nan
    else:
        one, other = (f"blocks.block.{name}.instances.0.weight_base" for name in ("attn.qkv", "mlp.fc1"))
        tensors[one], tensors[other] = tensors[other], tensors[one]
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "gene.safetensors")
    with pytest.raises(CheckpointError):
        TLEG.from_pretrained(tmp_path / "gene.safetensors")

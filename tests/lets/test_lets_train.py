import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_paraminit.errors import CheckpointError, TrainingConfigError
from hf_paraminit.lets.ablation import aux_net_state, fresh_transforms, scaled_random
from hf_paraminit.lets.aux_net import AuxNet, skeleton
from hf_paraminit.lets.checkpoint import published_name
from hf_paraminit.lets.config import LeTsConfig, adjacent_pairs
from hf_paraminit.lets.depth import spread_blocks
from hf_paraminit.lets.distillation import Distillation
from hf_paraminit.lets.generator import LeTsGenerator
from hf_paraminit.lets.slots import find_vision_transformer
from hf_paraminit.lets.train import (
    AuxTraining,
    Batch,
    Recipe,
    WeightAverage,
    adamw,
    aux_accuracy,
    load_teacher,
    train_learngene,
    warmup_cosine,
)
from hf_paraminit.training.loop import TrainingConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "lets"
CLASSES = 3
TINY = LeTsConfig(
    embed_dim=16, num_heads=2, depth=2, aux_dim=32, pairs=adjacent_pairs(2, 2), repeat=2, patch_size=8, img_size=16,
    num_classes=CLASSES, gene_init="scaled",
)  # fmt: skip


def objective(**settings: object) -> AuxTraining:
    return AuxTraining(LeTsGenerator.new(TINY, seed=0), drop_path_rate=0.0, **settings)  # type: ignore[arg-type]


def batch_at(index: int) -> Batch:
    """Noise of which one channel is brighter, the class."""
    generator = torch.Generator().manual_seed(index)
    labels = torch.arange(12) % CLASSES
    images = torch.randn(12, 3, 16, 16, generator=generator)
    images[torch.arange(12), labels] += 1.5
    return images, labels


def settings(output: Path, steps: int, **changes: object) -> TrainingConfig:
    known = {"learning_rate": 3e-3, "weight_decay": 0.05, "warmup_steps": 2, "gradient_clip": 1.0, "cpu": True}
    return TrainingConfig(output=str(output), steps=steps, **{**known, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("case", ["case_a", "case_c"])
def test_losses_are_the_recorded_ones(case: str) -> None:
    recorded = load_file(GOLDEN / case / "io.safetensors")
    losses = json.loads((GOLDEN / case / "meta.json").read_text())["losses"]
    assert len(losses) == 12
    logits, teacher = recorded["aux_logits"].double(), recorded["teacher_logits"].double()
    base = F.cross_entropy(logits, recorded["soft_labels"].double())
    for key, expected in losses.items():
        kind, alpha, tau = key.split("|")
        distillation = Distillation(kind=kind, alpha=float(alpha.split("=")[1]), tau=float(tau.split("=")[1]))
        assert distillation.loss(logits, base, teacher).item() == pytest.approx(expected, rel=1e-6), key


def test_the_loss_per_image_differs_by_the_number_of_classes() -> None:
    torch.manual_seed(0)
    logits, teacher = torch.randn(4, 7), torch.randn(4, 7)
    published = Distillation().loss(logits, torch.tensor(0.0), teacher)
    per_image = Distillation(normalization="images").loss(logits, torch.tensor(0.0), teacher)
    assert per_image.item() == pytest.approx(7 * published.item())


def test_weight_decay_falls_on_the_recorded_parameters() -> None:
    meta = json.loads((GOLDEN / "case_a" / "meta.json").read_text())
    config = LeTsConfig(
        embed_dim=24, num_heads=3, aux_dim=48, img_size=meta["img_size"], num_classes=meta["num_classes"]
    )
    module = AuxTraining(LeTsGenerator.new(config, seed=0))
    decayed, free = adamw(module, settings(Path("unused"), 1)).param_groups
    names = {
        id(parameter): published_name(name, config.repeat) for name, parameter in module.generator.named_parameters()
    }
    found = {"0.05": {names[id(p)] for p in decayed["params"]}, "0.0": {names[id(p)] for p in free["params"]}}
    assert decayed["weight_decay"] == 0.05
    assert free["weight_decay"] == 0
    assert {kind: set(group) for kind, group in meta["adamw_groups"].items()} == found


def test_training_learns_and_all_parameters_move(tmp_path: Path) -> None:
    module = objective()
    before = copy.deepcopy(module.generator.state_dict())
    accuracy = aux_accuracy(module.generator, [batch_at(index) for index in range(100, 104)])
    generator = train_learngene(module, batch_at, settings(tmp_path, 40))
    assert aux_accuracy(generator, [batch_at(index) for index in range(100, 104)]) > max(80, accuracy)
    still = [name for name, value in generator.state_dict().items() if torch.equal(value, before[name])]
    assert [name for name in still if "attn.k.bias" not in name] == []  # whose gradient is zero


def test_a_resumed_run_is_the_uninterrupted_one_average_included(tmp_path: Path) -> None:
    recipe = Recipe(ema_decay=0.9, min_learning_rate=1e-5)
    whole = train_learngene(objective(), batch_at, settings(tmp_path / "whole", 6), recipe)
    train_learngene(objective(), batch_at, settings(tmp_path / "parts", 6, stop_after=3), recipe)
    resumed = train_learngene(objective(), batch_at, settings(tmp_path / "parts", 6), recipe)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_random_sizes_are_trained_and_the_aux_net_is_evaluated() -> None:
    net = AuxNet(LeTsGenerator.new(TINY, seed=0), drop_path_rate=0.0, samples_sizes=True)
    images, labels = batch_at(0)
    assert torch.equal(net.eval()(images), AuxNet(net.generator).eval()(images))
    torch.manual_seed(0)
    sizes = {net._drawn_size() for _ in range(200)}
    assert sizes == {(width, depth) for width in (16, 24, 32) for depth in (2, 3, 4)}
    state = torch.random.get_rng_state()
    width, depth = net._drawn_size()
    torch.random.set_rng_state(state)
    blocks = spread_blocks(depth, TINY.num_blocks)
    drawn = skeleton(TINY, width=width, depth=depth)
    values = find_vision_transformer(drawn).to_state(net.generator.materialize(width, blocks))
    torch.testing.assert_close(net.train()(images), torch.func.functional_call(drawn, values, (images,)))
    module = objective(samples_sizes=True)
    module((images, labels))["loss"].backward()
    assert all(parameter.grad is not None for parameter in module.parameters()), "as data-parallel training wants"


def test_a_resumed_run_draws_the_same_sizes(tmp_path: Path) -> None:
    def run(output: Path, **changes: object) -> LeTsGenerator:
        return train_learngene(objective(samples_sizes=True), batch_at, settings(output, 6, **changes))

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", stop_after=3)
    resumed = run(tmp_path / "parts")
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_run_of_another_learngene_is_not_continued(tmp_path: Path) -> None:
    train_learngene(objective(), batch_at, settings(tmp_path, 4, stop_after=2), identity={"depth": 2})
    with pytest.raises(TrainingConfigError, match="depth"):
        train_learngene(objective(), batch_at, settings(tmp_path, 4), identity={"depth": 3})


def test_accumulated_batches_count_alike(tmp_path: Path) -> None:
    """Two batches in one step move the weights as their union does; the published loop loses all but the last."""

    def halves(index: int) -> Batch:
        images, labels = batch_at(index // 2)
        half = slice(6 * (index % 2), 6 * (index % 2) + 6)
        return images[half], labels[half]

    whole = train_learngene(objective(), batch_at, settings(tmp_path / "whole", 2))
    parts = train_learngene(objective(), halves, settings(tmp_path / "parts", 2, gradient_accumulation=2))
    for name, value in whole.state_dict().items():
        if "attn.k.bias" not in name:  # whose gradient is zero but for rounding, which AdamW blows up
            torch.testing.assert_close(value, parts.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_the_average_is_that_of_the_weights_and_runs_by_itself() -> None:
    module = objective()
    average = WeightAverage(module.generator, 0.75)
    seen = []
    for step in range(3):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1 * (step + 1))
        average.update(module, step)
        seen.append(module.generator.F.emb.detach().clone())
    expected = 0.75 * (0.75 * seen[0] + 0.25 * seen[1]) + 0.25 * seen[2]
    torch.testing.assert_close(average.generator.F.emb, expected)
    images = batch_at(0)[0]
    before = AuxNet(average.generator).eval()(images)
    with torch.no_grad():
        module.generator.F.emb.zero_()
    assert torch.equal(AuxNet(average.generator).eval()(images), before)


def test_a_teacher_decides_alone_when_alpha_is_one(tmp_path: Path) -> None:
    teacher = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(12, CLASSES))
    module = objective(distillation=Distillation(normalization="images"), teacher=teacher)
    assert set(dict(module.named_parameters())) == {
        f"aux_net.generator.{name}" for name, _ in module.generator.named_parameters()
    }
    images, labels = batch_at(0)
    first, second = (module((images, chosen))["loss"] for chosen in (labels, labels.flip(0)))
    assert torch.equal(first, second)
    before = copy.deepcopy(teacher.state_dict())
    train_learngene(module, batch_at, settings(tmp_path, 2))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    agreement = (AuxNet(module.generator).eval()(images).argmax(1) == teacher(images).argmax(1)).float().mean()
    assert agreement.isfinite()


def test_mixed_labels_and_bfloat16_train(tmp_path: Path) -> None:
    def mixed(index: int) -> Batch:
        images, labels = batch_at(index)
        shares = F.one_hot(labels, CLASSES).float()
        return 0.7 * images + 0.3 * images.flip(0), 0.7 * shares + 0.3 * shares.flip(0)

    generator = train_learngene(objective(), mixed, settings(tmp_path, 2, mixed_precision="bf16"))
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in generator.state_dict().values())


def test_the_schedule_warms_up_and_ends_at_its_minimum() -> None:
    config = settings(Path("unused"), 100, learning_rate=5e-4, warmup_steps=10)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    schedule = warmup_cosine(optimizer, config, Recipe(min_learning_rate=1e-5, warmup_learning_rate=1e-6))
    rates = []
    for _ in range(100):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert 1e-6 < rates[0] < 1e-4
    assert rates[10] == pytest.approx(5e-4)
    assert rates == [*sorted(rates[:11]), *sorted(rates[11:], reverse=True)]
    assert schedule.get_last_lr()[0] == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: objective(distillation=Distillation()), "needs a teacher"),
        (lambda: objective(teacher=nn.Flatten()), "has no teacher"),
        (
            lambda: objective(distillation=Distillation(), teacher=nn.Sequential(nn.Flatten(), nn.Linear(768, 4))),
            r"expected \(1, 3\)",
        ),
        (lambda: objective(distillation=Distillation(), teacher=nn.Conv2d(5, 3, 1)), "does not take images"),
        (lambda: load_teacher("levit_38", 3), "no model"),
        (lambda: Distillation(alpha=2.0), "alpha=2.0"),
        (lambda: Distillation(kind="warm", tau=0), "kind='warm'.*tau=0"),  # type: ignore[arg-type]
        (lambda: Recipe(ema_decay=1.0), "ema_decay"),
    ],
)
def test_settings_that_cannot_work_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(TrainingConfigError, match=message):
        make()


def test_a_teacher_is_read_from_files_without_running_them(tmp_path: Path) -> None:
    teacher = load_teacher_file(tmp_path / "teacher.pth", 3)
    again = load_teacher("test_resnet", 3, checkpoint=str(tmp_path / "teacher.pth"))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in teacher.items())
    save_file(teacher, tmp_path / "teacher.safetensors")
    load_teacher("test_resnet", 3, checkpoint=str(tmp_path / "teacher.safetensors"))
    with pytest.raises(CheckpointError, match="does not fit the teacher test_resnet with 5 classes"):
        load_teacher("test_resnet", 5, checkpoint=str(tmp_path / "teacher.pth"))


def load_teacher_file(path: Path, num_classes: int) -> dict[str, Tensor]:
    state = timm.create_model("test_resnet", num_classes=num_classes).state_dict()
    torch.save({"model": state, "epoch": 3}, path)
    return state


def test_fresh_transforms_keep_the_learngene() -> None:
    generator = LeTsGenerator.new(TINY, seed=0)
    fresh = fresh_transforms(generator, seed=5)
    for name, value in generator.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]) == (not name.startswith(("F.", "G."))), name
    assert torch.equal(fresh.F.emb, fresh_transforms(generator, seed=5).F.emb)


def test_the_aux_net_as_a_donor_is_the_aux_net() -> None:
    generator = LeTsGenerator.new(TINY, seed=0)
    net = skeleton(TINY).to_empty(device="cpu").eval()
    net.load_state_dict(aux_net_state(generator))
    images = batch_at(0)[0]
    torch.testing.assert_close(net(images), AuxNet(generator).eval()(images))


def test_the_scaled_start_only_reads_the_model() -> None:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", **sizes)
    names = [name for name, _ in model.named_parameters()]
    before = copy.deepcopy(model.state_dict())
    values = scaled_random(model, names)
    assert values.keys() == set(names)
    assert values["blocks.0.mlp.fc1.weight"].std().item() == pytest.approx(0.7 / 32**0.5, rel=0.2)
    assert torch.equal(values["blocks.1.norm1.weight"], torch.ones(32))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_the_published_size_builds_steps_and_saves(tmp_path: Path) -> None:
    module = AuxTraining(LeTsGenerator.new(LeTsConfig(), seed=0))
    assert sum(parameter.numel() for parameter in module.parameters()) == 37_735_784
    images, labels = torch.randn(2, 3, 224, 224), torch.tensor([3, 7])
    generator = train_learngene(module, lambda index: (images, labels), settings(tmp_path, 1))
    generator.save_pretrained(tmp_path / "predictor")
    again = LeTsGenerator.from_pretrained(tmp_path / "predictor")
    assert torch.equal(again.F.emb, generator.F.emb)

"""Members trained together are the members trained alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_zoo import noisy_prototypes, tiny_cnn
from torch import nn

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.hyperrep.zoo_training import (
    MemberConfig,
    Snapshot,
    build_member,
    stacking_gain,
    train_members,
    why_not_stacked,
)

DATA = noisy_prototypes()


class BatchNormed(nn.Sequential):
    """Running statistics, a counter, a tied layer and a buffer that is not saved."""

    def __init__(self) -> None:
        first, second = nn.Linear(64, 64), nn.Linear(64, 64)
        second.weight = first.weight
        super().__init__(nn.Flatten(), first, nn.BatchNorm1d(64), nn.ReLU(), second, nn.Linear(64, 10))
        self.register_buffer("unsaved", torch.ones(1), persistent=False)


class Attention(nn.Module):
    """Fused attention has no rule for vmap; it must be trained together all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(images[:, 0]).mean(1))


class Branching(nn.Module):
    """Looks at values, which vmap forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores = self.layer(images.flatten(1))
        return scores if scores.detach().sum().item() > 0 else 2 * scores


def relu_cnn() -> nn.Module:
    return tiny_cnn(activation="relu")


def train(
    constructor: Callable, members: list[MemberConfig], *, stacked: bool, save: Any = (0, 1, 2)
) -> list[Snapshot]:
    return list(train_members(constructor, members, DATA, save, stacked=stacked))


SGD = {"optimizer": "sgd", "weight_decay": 1e-3, "learning_rate": 0.02}
SETTINGS = {
    "adam": {"optimizer": "adam"},
    "decay": {"optimizer": "adam", "weight_decay": 0.01, "schedule": "onecycle"},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1},
    "sgd": SGD,
}


@pytest.mark.parametrize(
    ("constructor", "settings"),
    [*((tiny_cnn, settings) for settings in SETTINGS.values()), (BatchNormed, SGD), (Attention, SGD)],
    ids=[*SETTINGS, "batch norm", "attention"],
)
def test_together_is_alone(constructor: Callable, settings: dict[str, Any]) -> None:
    rates = (1.0, 2.0, 0.5)
    rate = settings.get("learning_rate", 2e-3)
    members = [MemberConfig(**{**settings, "seed": s, "epochs": 2, "learning_rate": rate * rates[s]}) for s in range(3)]
    together = train(constructor, members, stacked=True)
    assert [snapshot.epoch for snapshot in together] == [0, 1, 2]
    for number, member in enumerate(members):
        alone = train(constructor, [member], stacked=False)
        for one, all_ in zip(alone, together, strict=True):
            assert [*one.tensors] == [*all_.tensors] == [*constructor().state_dict()]
            for name, tensor in one.tensors.items():
                torch.testing.assert_close(all_.tensors[name][number], tensor[0], atol=2e-5, rtol=1e-3)
            for name, metric in one.metrics.items():
                assert float(all_.metrics[name][number]) == pytest.approx(float(metric[0]), abs=0.011)
    first, last = together[0].tensors, together[-1].tensors
    assert all(not torch.equal(first[name], last[name]) for name in first if name != "unsaved")


def test_training_learns() -> None:
    members = [MemberConfig(seed=s, epochs=8, learning_rate=1e-2) for s in range(2)]
    before, after = train(tiny_cnn, members, stacked=True, save=(0, 8))
    assert float(before.metrics["test_accuracy"].max()) < 0.3
    assert float(after.metrics["test_accuracy"].min()) > 0.8
    assert bool((after.metrics["train_loss"] < before.metrics["train_loss"]).all())


def test_a_member_depends_on_its_own_settings_alone() -> None:
    members = [MemberConfig(seed=s, epochs=1) for s in (5, 6, 7)]
    (of_three,) = train(tiny_cnn, members, stacked=True, save=[1])
    (of_two,) = train(tiny_cnn, members[1:], stacked=True, save=[1])
    for name, tensor in of_two.tensors.items():
        torch.testing.assert_close(of_three.tensors[name][1:], tensor, atol=1e-6, rtol=1e-5)
    (again,) = train(tiny_cnn, members, stacked=True, save=[1])
    assert all(torch.equal(of_three.tensors[name], tensor) for name, tensor in again.tensors.items())


def test_a_diverging_member_spoils_no_other() -> None:
    members = [MemberConfig(seed=0, epochs=1, optimizer="sgd", learning_rate=rate) for rate in (1e-2, 1e30)]
    (pair,) = train(relu_cnn, members, stacked=True, save=[1])
    (alone,) = train(relu_cnn, members[:1], stacked=False, save=[1])
    assert not bool(pair.tensors["module_list.0.weight"][1].isfinite().all())
    assert bool(pair.metrics["test_accuracy"].isnan().tolist()[1])
    torch.testing.assert_close(pair.tensors["module_list.0.weight"][0], alone.tensors["module_list.0.weight"][0])


def test_the_random_state_of_the_process_is_kept() -> None:
    torch.manual_seed(4)
    expected = torch.randn(3)
    torch.manual_seed(4)
    snapshots = train_members(
        lambda: tiny_cnn(dropout=0.5), [MemberConfig(seed=0, epochs=2)], DATA, [1, 2], stacked=False
    )
    drawn = [next(snapshots), torch.randn(3)][1]
    assert torch.equal(drawn, expected)
    *_, last = snapshots
    undisturbed = list(
        train_members(lambda: tiny_cnn(dropout=0.5), [MemberConfig(seed=0, epochs=2)], DATA, [2], stacked=False)
    )
    assert torch.equal(last.tensors["module_list.0.weight"], undisturbed[0].tensors["module_list.0.weight"])


def test_initial_weights_follow_seed_and_distribution() -> None:
    default, again, other = (build_member(tiny_cnn, MemberConfig(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(default.module_list[0].weight, again.module_list[0].weight)
    assert not torch.equal(default.module_list[0].weight, other.module_list[0].weight)
    uniform = build_member(tiny_cnn, MemberConfig(seed=1, init="uniform"))
    low, high = torch.aminmax(uniform.module_list[6].weight.detach())
    assert 0 <= float(low) < 0.05 < 0.95 < float(high) <= 1  # U(0, 1), torch's default
    normal = build_member(tiny_cnn, MemberConfig(seed=1, init="kaiming_normal"))
    weight = normal.module_list[6].weight.detach()
    assert float(weight.std()) == pytest.approx((2 / weight.shape[1]) ** 0.5, rel=0.1)
    assert normal.module_list[6].bias.tolist() == pytest.approx([0.01] * 16)


def test_networks_that_vmap_cannot_take() -> None:
    images = DATA.train[0][:4]
    assert why_not_stacked(tiny_cnn(), images) is None
    assert why_not_stacked(BatchNormed(), images) is None
    reason = why_not_stacked(Branching(), images)
    assert reason is not None
    assert "vmap" in reason
    (found,) = train(Branching, [MemberConfig(seed=0, epochs=1)], stacked=False, save=[1])
    assert found.tensors["layer.weight"].shape == (1, 10, 64)


def test_the_gain_is_measured_without_touching_the_network() -> None:
    model = tiny_cnn()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert 0.05 < stacking_gain(model, DATA.train[0][:64]) < 50
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_one_cycle_schedule_is_that_of_torch() -> None:
    member = MemberConfig(seed=0, learning_rate=0.1, schedule="onecycle")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=50, cycle_momentum=False)
    for step in range(50):
        assert 0.1 * member.rate_factor(step, 50) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        if step < 49:
            schedule.step()


def test_settings_that_cannot_work_are_all_named() -> None:
    with pytest.raises(TrainingConfigError, match=r"optimizer must be one of adam.*epochs must be.*learning_rate must"):
        MemberConfig(seed=0, optimizer="lion", epochs=0, learning_rate=-1.0)
    with pytest.raises(TrainingConfigError, match=r"seed must be a whole number of at least 0, got True"):
        MemberConfig(seed=True)
    with pytest.raises(TrainingConfigError, match="no lr; their settings are"):
        MemberConfig.from_dict({"seed": 0, "lr": 3})
    member = MemberConfig(seed=3, model_kwargs={"activation": "relu"})
    assert MemberConfig.from_dict(member.to_dict()) == member

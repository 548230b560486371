"""The laws that define the standard families, and `default`."""

import math

import pytest
import timm
import torch
from scipy.stats import kstest, norm, truncnorm, uniform
from torch import Tensor, nn

import hf_paraminit
from hf_paraminit.errors import InitializerConfigError, PredictionError


class Mixed(nn.Module):
    """One layer of each kind, large enough to tell distributions apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 64, 3)
        self.grouped = nn.Conv2d(64, 64, 3, groups=4)
        self.up = nn.ConvTranspose2d(64, 32, 2)
        self.norm = nn.BatchNorm2d(32)
        self.relu = nn.ReLU()
        self.hidden = nn.Linear(32, 96)
        self.fc = nn.Linear(96, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.up(self.grouped(self.conv(images)))).mean((2, 3))
        return self.fc(self.relu(self.hidden(features)))


def initialized(name: str, **settings: object) -> Mixed:
    model = Mixed()
    report = hf_paraminit.initialize(model, name, input_size=16, **settings)
    assert report.coverage_elements == 1
    return model


def assert_distributed(weight: Tensor, distribution: object) -> None:
    assert kstest(weight.detach().flatten().numpy(), distribution.cdf).pvalue > 1e-3


def test_he_has_the_variance_of_its_fan() -> None:
    model = initialized("he")
    assert_distributed(model.conv.weight, norm(scale=math.sqrt(2 / (64 * 9))))
    assert_distributed(model.grouped.weight, norm(scale=math.sqrt(2 / (64 * 9))))
    assert_distributed(model.up.weight, norm(scale=math.sqrt(2 / (32 * 4))))
    assert_distributed(model.hidden.weight, norm(scale=math.sqrt(2 / 32)))
    assert_distributed(initialized("he", group_aware=True).grouped.weight, norm(scale=math.sqrt(2 / (16 * 9))))


def test_he_sets_norms_to_the_identity_and_biases_to_zero() -> None:
    model = initialized("he")
    assert torch.equal(model.norm.weight, torch.ones(32))
    for bias in (model.norm.bias, model.conv.bias, model.up.bias, model.fc.bias):
        assert not bias.any()


def test_xavier_is_uniform_within_its_bound() -> None:
    bound = math.sqrt(6 / (32 + 96))
    weight = initialized("xavier").hidden.weight
    assert weight.abs().max() <= bound
    assert_distributed(weight, uniform(-bound, 2 * bound))


@pytest.mark.parametrize("model_name", ["test_vit", "test_maxvit"])
def test_xavier_sees_three_square_layers_in_a_fused_one(model_name: str) -> None:
    model = timm.create_model(model_name)
    hf_paraminit.initialize(model, "xavier")
    weight = next(parameter for name, parameter in model.named_parameters() if name.endswith("qkv.weight"))
    bound = math.sqrt(6 / (2 * weight.shape[1]))
    assert 0.98 * bound < weight.abs().max() <= bound


def test_xavier_says_when_it_cannot_see_fused_layers() -> None:
    report = hf_paraminit.initialize(nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4)), "xavier")
    assert any("cannot be traced" in note for note in report.notes)


def test_trunc02_cuts_nothing_in_timms_convention_and_at_two_deviations_in_that_of_jax() -> None:
    weight = initialized("trunc02").conv.weight
    assert_distributed(weight, norm(scale=0.02))
    assert weight.abs().max() > 2 * 0.02 / 0.8796
    weight = initialized("trunc02", trunc="std").conv.weight
    assert_distributed(weight, truncnorm(-2, 2, scale=0.02 / 0.87962566))
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_trunc02_also_draws_tables() -> None:
    model = timm.create_model("test_vit")
    hf_paraminit.initialize(model, "trunc02", std=0.5)
    assert model.pos_embed.std().item() == pytest.approx(0.5, rel=0.05)


def test_lecun_has_variance_one_over_fan_in_and_a_zero_head() -> None:
    model = initialized("lecun")
    assert model.conv.weight.std().item() == pytest.approx((16 * 9) ** -0.5, rel=0.03)
    assert model.conv.weight.abs().max() <= 2 * (16 * 9) ** -0.5 / 0.8796
    assert not model.fc.weight.any()


def test_lecun_draws_tiny_biases_in_mlps_only() -> None:
    model = timm.create_model("test_vit")
    hf_paraminit.initialize(model, "lecun")
    assert model.blocks[0].mlp.fc1.bias.std().item() == pytest.approx(1e-6, rel=0.3)
    assert not model.blocks[0].attn.proj.bias.any()


def test_orthogonal_rows_or_columns_are_orthonormal_up_to_the_gain() -> None:
    model = initialized("orthogonal")
    conv, hidden, head = model.conv.weight.flatten(1), model.hidden.weight, model.fc.weight
    torch.testing.assert_close(conv @ conv.T, torch.eye(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden.T @ hidden, 2 * torch.eye(32), atol=1e-5, rtol=0)  # a ReLU follows
    torch.testing.assert_close(head @ head.T, torch.eye(10), atol=1e-5, rtol=0)
    up = model.up.weight.transpose(0, 1).flatten(1)
    torch.testing.assert_close(up @ up.T, torch.eye(32), atol=1e-5, rtol=0)


def test_orthogonal_takes_one_gain_for_all() -> None:
    hidden = initialized("orthogonal", gain=3.0).hidden.weight
    torch.testing.assert_close(hidden.T @ hidden, 9 * torch.eye(32), atol=1e-4, rtol=0)


def test_torch_default_is_what_torchs_layers_draw() -> None:
    model = Mixed()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    hf_paraminit.initialize(model, "torch-default")
    bound = 1 / math.sqrt(16 * 9)
    assert_distributed(model.conv.weight, uniform(-bound, 2 * bound))
    assert torch.equal(model.norm.weight, torch.ones(32))
    assert model.norm.running_mean.eq(0).all()
    assert len({parameter.flatten()[0].item() for parameter in (model.conv.weight, model.grouped.weight)}) == 2


def test_default_writes_nothing() -> None:
    model = Mixed()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = hf_paraminit.initialize(model, "default")
    assert report.predicted == {}
    assert len(report.kept) == 12
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_value_does_not_depend_on_what_else_is_offered() -> None:
    alone, together = Mixed(), Mixed()
    hf_paraminit.initialize(alone, "he", names=["hidden.weight"])
    hf_paraminit.initialize(together, "he")
    assert torch.equal(alone.hidden.weight, together.hidden.weight)
    assert not torch.equal(alone.fc.weight, together.fc.weight)


def test_another_seed_gives_other_values_and_no_two_tensors_share_a_stream() -> None:
    first, second = initialized("he"), initialized("he", seed=1)
    assert not torch.equal(first.fc.weight, second.fc.weight)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    hf_paraminit.initialize(model, "he")
    assert not torch.equal(model[0].weight, model[1].weight)


def test_the_report_names_the_rule_with_mean_and_deviation() -> None:
    report = hf_paraminit.initialize(Mixed(), "he")
    assert "He normal" in report.predicted["conv.weight"]
    assert "std 0.05" in report.predicted["conv.weight"]
    assert report.predicted["norm.weight"].endswith("one, mean 1, std 0")


def test_strict_refuses_a_model_that_it_does_not_apply_to() -> None:
    model = nn.Embedding(3, 4)
    with pytest.raises(PredictionError, match="applies to none"):
        hf_paraminit.initialize(model, "he", strict=True)
    assert any("applies to none" in note for note in hf_paraminit.initialize(model, "he").notes)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("trunc02", {"trunc": "both"}),
        ("trunc02", {"std": 0}),
        ("he", {"group_aware": 1}),
        ("orthogonal", {"gain": "x"}),
    ],
)
def test_bad_settings_are_refused(name: str, settings: dict) -> None:
    with pytest.raises(InitializerConfigError, match=name):
        hf_paraminit.initialize(Mixed(), name, **settings)

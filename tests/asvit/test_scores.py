"""Length distortion, curvature and the neural tangent kernel: recorded values, laws, and what is refused."""

import copy
import math

import asvit_goldens
import pytest
import timm
import torch
from torch import Tensor, nn

import hf_paraminit
from hf_paraminit.asvit.complexity import (
    circle_geometry,
    circle_points,
    complexity,
    draw_frame,
    published_gauss_length,
)
from hf_paraminit.asvit.errors import ScoreError
from hf_paraminit.asvit.ntk import condition_number, kernel, kernel_eigenvalues, ntk_condition
from hf_paraminit.asvit.probe import remove_norms, scored_copy
from hf_paraminit.errors import UnknownInitializerError

TINY = "4,2,2|2,1,2|2,1,2|2,1,2|8,8"
POINTS = circle_points(10, torch.float64)


def tiny(**kwargs) -> nn.Module:
    return timm.create_model("asvit", **{"arch": TINY, "img_size": 32, "num_classes": 4, **kwargs})


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("case", asvit_goldens.CASES)
def test_recorded_length_distortion(case: str) -> None:
    record, expected = asvit_goldens.read(case), asvit_goldens.tensors(case)
    frame, lengths = asvit_goldens.circle_frame(record["img_size"]), record["length_distortion"]
    kept = asvit_goldens.network(record)
    bare = copy.deepcopy(kept)
    remove_norms(bare)
    single = circle_geometry(bare.forward_pooled, frame.float(), POINTS.float()).speeds.sum().item()
    assert single == pytest.approx(lengths["f32"], rel=1e-5)
    geometry = circle_geometry(bare.double().forward_pooled, frame, POINTS, curvature="curvature_f64" in lengths)
    torch.testing.assert_close(geometry.speeds, expected["gE_f64"], rtol=1e-9, atol=0)
    assert geometry.speeds.sum().item() == pytest.approx(lengths["f64"], rel=1e-9)
    with_norms = circle_geometry(kept.double().forward_pooled, frame, POINTS).speeds.sum().item()
    assert with_norms == pytest.approx(lengths["jvp_f64_norm_kept"], rel=1e-9)
    if geometry.curvatures is not None:
        assert geometry.curvatures.sum().item() == pytest.approx(lengths["curvature_f64"], rel=1e-9)
        assert published_gauss_length(geometry) == pytest.approx(lengths["gauss_length_f64"], rel=1e-9)


@pytest.mark.parametrize("case", asvit_goldens.CASES)
def test_recorded_kernel(case: str) -> None:
    record, expected = asvit_goldens.read(case), asvit_goldens.tensors(case)
    model = asvit_goldens.network(record)
    images = asvit_goldens.images(asvit_goldens.NTK_INPUT, 6, record["img_size"])
    assert condition_number(kernel_eigenvalues(kernel(model, images))) == pytest.approx(
        record["ntk"]["cond_f64"], rel=2e-3
    )
    gram = kernel(model.double(), images.double())
    torch.testing.assert_close(gram, expected["ntk_f64"], rtol=1e-9, atol=0)
    eigenvalues = kernel_eigenvalues(gram)
    torch.testing.assert_close(eigenvalues, expected["ntk_eig_f64"], rtol=1e-9, atol=0)
    assert condition_number(eigenvalues) == pytest.approx(record["ntk"]["cond_f64"], rel=1e-9)


@pytest.mark.parametrize("case", ["a02", "a03"])
def test_recorded_scores_at_the_published_start(case: str) -> None:
    record, state = asvit_goldens.read(case), asvit_goldens.tensors(f"{case}_init_state")
    model = asvit_goldens.network(record, state).double()
    images = asvit_goldens.images(asvit_goldens.NTK_INPUT, 6, record["img_size"]).double()
    condition = condition_number(kernel_eigenvalues(kernel(model, images)))
    assert condition == pytest.approx(record["init_ntk_cond_f64"], rel=1e-9)
    remove_norms(model)
    frame = asvit_goldens.circle_frame(record["img_size"])
    total = circle_geometry(model.forward_pooled, frame, POINTS).speeds.sum().item()
    assert total == pytest.approx(record["init_length_distortion_f64"], rel=1e-9)


@pytest.mark.parametrize("index", [0, 1])
def test_our_draws_are_the_published_distribution(index: int) -> None:
    """Means over 20 draws lie within four standard errors of the recorded ones."""
    record = asvit_goldens.read("init_statistics")[index]
    model = timm.create_model("asvit", arch=record["arch"], img_size=record["img_size"], num_classes=10)
    found = complexity(model, reinit="native", repeats=20, dtype=torch.float64)
    error = record["le_std"] * math.sqrt(1 / 20 + 1 / record["n_nets"])
    assert abs(found.speed_sum - record["le_mean"]) < 4 * error
    images = torch.randn(8, 3, record["img_size"], record["img_size"])
    logs = torch.tensor(ntk_condition(model, images, reinit="native", repeats=20, dtype=torch.float64).values).log10()
    error = record["ntk_log10_std"] * math.sqrt(1 / 20 + 1 / len(record["ntk"]))
    assert abs(logs.mean().item() - record["ntk_log10_mean"]) < 4 * error


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_convnext", "asvit"])
@pytest.mark.parametrize("norm", ["identity", "keep"])
def test_forward_mode_equals_central_differences(name: str, norm: str) -> None:
    model = tiny() if name == "asvit" else timm.create_model(name, num_classes=4)
    size = (3, 32, 32) if name == "asvit" else model.default_cfg["input_size"]
    replica = scored_copy(model, norm=norm, reinit="none", seed=0, dtype=torch.float64)
    features = getattr(replica, "forward_pooled", None) or (
        lambda x: replica.forward_head(replica.forward_features(x), pre_logits=True)
    )
    frame, points, step = draw_frame(size, 0), POINTS[:3] + 0.1, 1e-5

    def curve(theta: Tensor) -> Tensor:
        return features(frame[0] * theta.cos()[:, None, None, None] + frame[1] * theta.sin()[:, None, None, None])

    with torch.no_grad():
        differences = (curve(points + step) - curve(points - step)).norm(dim=1) / (2 * step)
    torch.testing.assert_close(circle_geometry(features, frame, points).speeds, differences, rtol=1e-5, atol=0)


def test_second_derivatives_of_a_known_curve() -> None:
    """An ellipse has curvature a b / (a^2 sin^2 + b^2 cos^2)^(3/2), and turns by 2 pi in all."""
    a, b = 3.0, 2.0
    frame = torch.eye(2, dtype=torch.float64)
    points = circle_points(2001, torch.float64)
    geometry = circle_geometry(lambda x: x * torch.tensor([a, b], dtype=x.dtype), frame, points, curvature=True)
    speeds = ((a * points.sin()) ** 2 + (b * points.cos()) ** 2).sqrt()
    torch.testing.assert_close(geometry.speeds, speeds)
    torch.testing.assert_close(geometry.curvatures, a * b / speeds**3)
    torch.testing.assert_close(torch.trapezoid(geometry.turning, points).item(), 2 * math.pi)


def test_chunks_change_memory_not_values() -> None:
    model = tiny()
    found = [complexity(model, repeats=1, dtype=torch.float64, chunk_size=size).speed_sum for size in (None, 1, 6)]
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-12)
    images = torch.randn(5, 3, 32, 32)
    grams = [kernel(model.eval(), images, chunk_size=size) for size in (1, 2, 8)]
    for gram in grams[1:]:
        torch.testing.assert_close(gram, grams[0], rtol=1e-4, atol=1e-6)


def test_means_and_units() -> None:
    found = complexity(tiny(), repeats=2, radius=3.0, reinit="native", num_points=5, curvature=True)
    assert found.speed_sum == pytest.approx(sum(found.values) / 2)
    # at this start the map is almost linear: a circle three times as large has an image three times as long
    small = complexity(tiny(), repeats=2, radius=1.0, reinit="native", num_points=5)
    assert found.speed_sum == pytest.approx(3 * small.speed_sum, rel=0.05)
    assert found.length_distortion == pytest.approx(small.length_distortion, rel=0.05)
    assert found.num_params == sum(p.numel() for p in tiny().parameters())
    assert found.macs > 0
    assert set(found.to_dict()) >= {"length_distortion", "curvature", "gauss_length", "num_params", "macs"}


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet"])
def test_any_timm_model_is_scored_and_left_alone(name: str) -> None:
    model = timm.create_model(name, num_classes=3).train()
    before, random_state = state_of(model), torch.get_rng_state()
    length = hf_paraminit.complexity(model, repeats=2, reinit="native")
    images = torch.randn(4, *model.default_cfg["input_size"], generator=torch.Generator().manual_seed(0))
    condition = hf_paraminit.ntk_condition(model, images, reinit="native", repeats=2)
    assert length.length_distortion > 0
    assert condition.condition > 1
    assert length.num_params == condition.num_params == sum(p.numel() for p in model.parameters())
    assert model.training
    assert torch.equal(torch.get_rng_state(), random_state)
    after = state_of(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert hf_paraminit.complexity(model, repeats=2, reinit="native") == length


def test_starts_of_every_kind() -> None:
    model = tiny()
    own = complexity(model, repeats=1).speed_sum
    assert complexity(model, repeats=1, reinit="native").speed_sum != own
    assert complexity(model, repeats=1, reinit="ghn3").speed_sum != own

    def doubled(replica: nn.Module) -> None:
        with torch.no_grad():
            replica.patch_embed.proj.weight.mul_(2)

    assert complexity(model, repeats=1, reinit=doubled).speed_sum != own
    assert complexity(model, repeats=1).speed_sum == own
    with pytest.raises(UnknownInitializerError):
        complexity(model, repeats=1, reinit="no-such-start")
    assert complexity(model, repeats=1).speed_sum == own


def test_a_failure_leaves_the_model_alone() -> None:
    model = tiny().train()
    before, random_state = state_of(model), torch.get_rng_state()

    def failing(_model: nn.Module, _images: Tensor) -> Tensor:
        raise RuntimeError("no")

    with pytest.raises(ScoreError, match="Cannot score AsViT"):
        complexity(model, features=failing)
    with pytest.raises(ScoreError, match="Cannot score AsViT on images of shape"):
        ntk_condition(model, torch.zeros(2, 1, 32, 32))
    assert model.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_norms_go_and_fused_activations_stay() -> None:
    model = timm.create_model("test_efficientnet")
    remove_norms(model)
    kinds = {type(module).__name__ for module in model.modules()}
    assert not {"BatchNormAct2d", "BatchNorm2d"} & kinds
    assert kinds & {"SiLU", "ReLU"}
    with_norms = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Sequential(nn.GroupNorm(1, 2), nn.RMSNorm(2)))
    remove_norms(with_norms)
    assert [type(module) for module in with_norms[2]] == [nn.Identity, nn.Identity]


def test_models_without_pooled_features_are_refused() -> None:
    with pytest.raises(ScoreError, match="no pooled features"):
        complexity(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), input_size=(3, 2, 2))
    model = tiny()
    model.reset_classifier(0, "")
    with pytest.raises(ScoreError, match=r"one vector per image, \(B, C\)"):
        complexity(model, features=lambda m, x: m(x), input_size=(3, 32, 32))
    plain = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    assert complexity(plain, features=lambda m, x: m(x), input_size=(3, 2, 2), repeats=1).speed_sum > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "gone"}, "norm must be one of"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"num_points": 1}, "num_points"),
        ({"radius": math.nan}, "radius"),
        ({"chunk_size": 0}, "chunk_size"),
    ],
)
def test_settings_that_cannot_work(settings: dict, message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        complexity(tiny(), **settings)


def test_kernels_that_cannot_be_inverted() -> None:
    image = torch.randn(1, 3, 32, 32)
    # rounding leaves the smallest eigenvalue of two equal images at or near zero
    assert ntk_condition(tiny(), image.repeat(2, 1, 1, 1), dtype=torch.float64).condition > 1e12
    assert math.isinf(condition_number(torch.tensor([0.0, 1.0])))
    assert math.isnan(condition_number(kernel_eigenvalues(torch.tensor([[math.nan, 0], [0, 1]]))))
    with pytest.raises(ScoreError, match="at least two images"):
        ntk_condition(tiny(), image)
    with pytest.raises(ScoreError, match="chunk_size"):
        ntk_condition(tiny(), image.repeat(2, 1, 1, 1), chunk_size=0)


def test_a_kernel_without_vectorisation() -> None:
    class Writing(nn.Module):
        """Its forward pass writes in place into a tensor that vmap does not see, which vmap refuses."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward_pooled(self, x: Tensor) -> Tensor:
            buffer = torch.zeros(x.shape[0], 4)
            buffer += x.flatten(1)
            return self.linear(buffer).square()

        forward = forward_pooled

    model, images = Writing(), torch.randn(3, 1, 2, 2)
    torch.testing.assert_close(kernel(model, images, chunk_size=3), kernel(model, images, chunk_size=1))

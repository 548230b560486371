import pytest
import torch
from torch import Tensor, nn

from hf_paraminit import initialize
from hf_paraminit.errors import InitializerConfigError
from hf_paraminit.evaluation.symmetry import SymmetryBroken, orthogonalized, row_spread, weight_shapes, with_noise


def tiled(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Every weight repeats a block of 4 x 4."""
    values = {}
    for name in names:
        shape = model.get_parameter(name).shape
        block = torch.randn(4, 4, generator=torch.Generator().manual_seed(len(name)))
        repeated = block.repeat(-(-shape[0] // 4), -(-(shape[1] if len(shape) > 1 else 1) // 4))
        plane = repeated[: shape[0], : shape[1] if len(shape) > 1 else 1]
        values[name] = plane.reshape(shape) if len(shape) < 3 else plane[..., None, None].expand(shape).clone()
    return values


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16, 12), nn.Linear(12, 10))


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (6, 4, 3, 3), (7, 7)])
def test_the_spread_is_that_of_all_correlations_between_rows(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    flat = weight.flatten(1)
    tall = flat if flat.shape[0] >= flat.shape[1] else flat.T
    assert row_spread(weight) == pytest.approx(float(torch.corrcoef(tall.double()).std()), rel=1e-6)


def test_constant_rows_correlate_with_nothing() -> None:
    assert row_spread(torch.ones(6, 4)) == 0.0


def test_noise_comes_beyond_the_decoded_part_only() -> None:
    weight = torch.randn(10, 8, 3, 3)
    noisy = with_noise(weight, 0.1, max_size=4, generator=torch.Generator().manual_seed(0))
    difference = noisy - weight
    assert not difference[:4].any()
    assert not difference[:, :4].any()
    assert difference[4:, 4:].ne(0).all()
    assert float(difference[4:, 4:].std()) == pytest.approx(0.1 * row_spread(weight), rel=0.3)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (6, 4, 3, 3)])
def test_orthogonal_weights_have_orthonormal_columns(shape: tuple[int, ...]) -> None:
    flat = orthogonalized(torch.randn(shape)).flatten(1)
    tall = flat if flat.shape[0] >= flat.shape[1] else flat.T
    assert torch.allclose(tall.T @ tall, torch.eye(tall.shape[1]), atol=1e-5)


def test_an_orthogonal_weight_stays_as_it_is() -> None:
    weight = orthogonalized(torch.randn(9, 4))
    assert torch.allclose(orthogonalized(weight), weight, atol=1e-6)


def test_large_weights_but_the_last_change_from_the_first_layer_on() -> None:
    plain, broken = network(), network()
    initialize(plain, tiled)
    report = initialize(broken, SymmetryBroken(of=tiled, noise=0.5, first_layer=2, max_size=4))
    changed = {
        name
        for (name, before), after in zip(plain.named_parameters(), broken.parameters(), strict=True)
        if not torch.equal(before, after)
    }
    assert list(weight_shapes(plain)) == ["0.weight", "1.weight", "3.weight", "4.weight"]
    assert changed == {"1.weight", "3.weight"}
    assert len(torch.unique(plain[3].weight, dim=0)) == 4
    assert len(torch.unique(broken[3].weight, dim=0)) == 12
    assert report.coverage_elements == 1.0


def test_orthogonalisation_comes_before_noise_and_both_repeat() -> None:
    models = [network() for _ in range(2)]
    for model in models:
        initialize(model, SymmetryBroken(of=tiled, noise=1e-5, is_orthogonal=True, max_size=4), seed=3)
    assert torch.equal(models[0][1].weight, models[1][1].weight)
    flat = models[0][1].weight.detach().flatten(1)
    rows = flat @ flat.T
    assert torch.allclose(rows, torch.eye(16), atol=1e-3)


@pytest.mark.parametrize("settings", [{}, {"of": tiled, "noise": -1.0}, {"of": tiled, "first_layer": 0}])
def test_wrong_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises((InitializerConfigError, ValueError), match=r"'of' must name|expected"):
        SymmetryBroken(**settings)

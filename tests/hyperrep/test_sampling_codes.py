"""How codes are drawn: what each method promises of its draws."""

import pytest
import torch
from torch import Tensor

from hf_paraminit.errors import InitializerConfigError
from hf_paraminit.hyperrep.sample import (
    METHODS,
    Coupling,
    Sampling,
    best_anchors,
    bootstrap,
    draw_codes,
    rank,
    reference_codes,
    subsample,
)


def anchors(count: int = 8) -> Tensor:
    return torch.randn(count, 5, 3, generator=torch.Generator().manual_seed(3)) * 10


def drawn(sampling: Sampling, num: int = 6, seed: int = 0) -> Tensor:
    return draw_codes(anchors(), num, sampling, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_function_of_the_seed(method: str) -> None:
    sampling = Sampling(method=method)  # type: ignore[arg-type]
    assert drawn(sampling).shape == (6, 5, 3)
    assert drawn(sampling).isfinite().all()
    assert torch.equal(drawn(sampling), drawn(sampling))
    assert not torch.equal(drawn(sampling), drawn(sampling, seed=1))
    flat = draw_codes(anchors().flatten(1), 4, sampling, torch.Generator().manual_seed(0))
    assert flat.shape == (4, 15)


def nearest(codes: Tensor, points: Tensor) -> Tensor:
    """Index of the anchor value nearest to each number: (N, T, z)."""
    return (codes[:, None] - points[None]).abs().argmin(1)


@pytest.mark.parametrize(
    ("coupling", "is_shared_in_token", "is_shared_in_code"),
    [("anchor", True, True), ("shared-noise", True, True), ("token", True, False), ("dim", False, False)],
)
def test_a_coupling_decides_what_follows_one_anchor(
    coupling: Coupling, is_shared_in_token: bool, is_shared_in_code: bool
) -> None:
    codes = drawn(Sampling(coupling=coupling, bandwidth=1e-4), num=40)
    index = nearest(codes, anchors())
    assert bool((index == index[:, :, :1]).all()) is is_shared_in_token
    assert bool((index == index[:, :1, :1]).all()) is is_shared_in_code
    assert len(index[:, 0, 0].unique()) == 8


def test_the_published_draw_is_one_anchor_and_one_shift() -> None:
    points = anchors()
    codes = reference_codes(points, 7, mode="individual", bandwidth=0.002)
    index = nearest(codes, points)[:, 0, 0]
    shifts = (codes.double() - points[index].double()).flatten(1)
    assert float(shifts.std(1).max()) < 1e-6
    assert float(shifts.abs().max()) < 0.01


def test_neighbours_mix_to_codes_inside_the_range_of_the_anchors() -> None:
    codes = drawn(Sampling(method="neighbourhood"), num=50)
    assert (codes <= anchors().amax(0) + 1e-4).all()
    assert (codes >= anchors().amin(0) - 1e-4).all()


@pytest.mark.parametrize("components", [1, 5, 100])
def test_neighbours_are_sought_in_as_many_components_as_asked_for(components: int) -> None:
    codes = drawn(Sampling(method="neighbourhood", components=components), num=50)
    assert codes.isfinite().all()
    if components != 3:
        assert not torch.equal(codes, drawn(Sampling(method="neighbourhood"), num=50))


def test_uniform_codes_fill_the_cube_of_bounded_codes() -> None:
    codes = drawn(Sampling(method="uniform"), num=400)
    assert -1 <= float(codes.min()) < -0.95
    assert 0.95 < float(codes.max()) <= 1


def test_one_anchor_can_be_drawn_from() -> None:
    for method in METHODS:
        codes = draw_codes(anchors(1), 2, Sampling(method=method), torch.Generator().manual_seed(0))
        assert codes.isfinite().all()


def test_best_anchors_are_those_at_or_above_the_quantile() -> None:
    assert best_anchors(torch.tensor([0.1, 0.9, 0.5, 0.8]), 0.5).tolist() == [1, 3]
    assert best_anchors(torch.tensor([0.1, 0.9]), 1.0).tolist() == [0, 1]


def closeness_to_zero(code: Tensor) -> float:
    return -float(code.abs().sum())


def test_subsampling_keeps_the_best_candidates_in_order() -> None:
    generator = torch.Generator().manual_seed(0)
    kept = subsample(anchors(), 4, Sampling(), generator, candidates=30, score=closeness_to_zero)
    everything = drawn(Sampling(), num=30)
    assert torch.equal(kept, rank(everything, closeness_to_zero)[0][:4])
    scores = [closeness_to_zero(code) for code in kept]
    assert scores == sorted(scores, reverse=True)


def test_bootstrapping_improves_on_its_first_round() -> None:
    means = []
    for rounds in (1, 4):
        generator = torch.Generator().manual_seed(0)
        settings = Sampling(coupling="dim", bandwidth=0.3)
        codes = bootstrap(anchors(), 5, settings, generator, candidates=40, rounds=rounds, score=closeness_to_zero)
        means.append(sum(map(closeness_to_zero, codes)) / 5)
    assert means[1] > means[0]


def test_a_score_that_is_not_a_number_is_the_lowest() -> None:
    codes = torch.arange(3.0)[:, None]
    order, scores = rank(codes, lambda code: float("nan") if code == 1 else float(code))
    assert order.flatten().tolist() == [2, 0, 1]
    assert scores[-1] == -torch.inf


def test_impossible_settings_are_refused() -> None:
    for settings in (
        {"bandwidth": -1.0},
        {"best_share": 0.0},
        {"method": "gan"},
        {"coupling": "layer"},
        {"components": 0},
    ):
        with pytest.raises(InitializerConfigError, match="Sampling: "):
            Sampling(**settings)  # type: ignore[arg-type]
    generator = torch.Generator()
    with pytest.raises(InitializerConfigError, match="3 candidates cannot give 4 codes"):
        subsample(anchors(), 4, Sampling(), generator, candidates=3, score=closeness_to_zero)
    with pytest.raises(InitializerConfigError, match="at least 1 round"):
        bootstrap(anchors(), 1, Sampling(), generator, candidates=3, rounds=0, score=closeness_to_zero)

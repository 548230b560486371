import pytest
import timm
import torch

import hf_paraminit
from hf_paraminit.errors import InitializerConfigError
from hf_paraminit.initializers.conv_covariance import filter_covariance


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("side", [5, 7])
def test_a_covariance_is_symmetric_positive_and_of_hes_trace(side: int, sigma: float) -> None:
    covariance = filter_covariance(side, sigma)
    torch.testing.assert_close(covariance, covariance.T)
    assert torch.linalg.eigvalsh(covariance).min() > -1e-5
    assert covariance.trace().item() == pytest.approx(2.0, rel=1e-5)  # k^2 * 2 / fan_in, fan_in = k^2


def test_variance_lies_at_the_centre_and_spreads_with_sigma() -> None:
    narrow, wide = (filter_covariance(7, sigma).diag() for sigma in (0.5, 3.0))
    assert narrow.argmax() == 24
    assert narrow[24] > 10 * narrow[0]
    assert wide[0] > narrow[0]


def test_drawn_filters_have_the_covariance() -> None:
    model = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(4000, 8, 8, 8))
    hf_paraminit.initialize(model, "conv-covariance", names=["stages.0.blocks.0.conv_dw.weight"])
    filters = model.stages[0].blocks[0].conv_dw.weight.detach().flatten(1)
    difference = filters.T @ filters / len(filters) - filter_covariance(7, 0.5)
    assert difference.norm() < 0.1 * filter_covariance(7, 0.5).norm()


def test_width_grows_with_depth_and_small_filters_are_left_alone() -> None:
    report = hf_paraminit.initialize(timm.create_model("test_convnext"), "conv-covariance")
    widths = [float(text.partition("width ")[2].partition(",")[0]) for text in report.predicted.values()]
    assert widths == sorted(widths)
    assert widths[0] == 0.5
    assert widths[-1] == 3.0
    assert not hf_paraminit.initialize(timm.create_model("test_efficientnet"), "conv-covariance").predicted


def test_bad_schedules_are_refused() -> None:
    with pytest.raises(InitializerConfigError, match="s0"):
        hf_paraminit.initialize(timm.create_model("test_convnext"), "conv-covariance", s0=0.0)

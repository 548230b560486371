import sys

import numpy as np
import pytest

from hf_paraminit.errors import MissingDependencyError
from hf_paraminit.plots.coverage import draw_coverage

pytest.importorskip("matplotlib")

RECORDS = {
    "models": ["resnet", "vit", "odd", "other"],
    "sources": ["timm", "timm", "timm", "transformers"],
    "elements": [10_000, 1_000_000, 5_000, 20_000],
    "kept_elements": [0, 1_000, 1_000, 10],
    "reasons": [("a short reason", 3), ("a reason that goes on" + 20 * " and on", 1)],
}


def test_one_point_per_model_at_its_share() -> None:
    points, bars = draw_coverage(**RECORDS, title="Title").axes
    timm, transformers = (collection.get_offsets().data for collection in points.collections)
    np.testing.assert_allclose(timm[:, 0], [10_000, 1_000_000, 5_000])
    np.testing.assert_allclose(timm[1:, 1], [0.1, 20])
    assert timm[0, 1] == points.get_yticks().min() > 0  # nothing kept: on the lowest line of the logarithmic axis
    np.testing.assert_allclose(transformers, [[20_000, 0.05]])
    labels = [text.get_text() for text in points.get_legend().get_texts()]
    assert labels == ["timm: 3 models, median 99.90 % predicted", "transformers: 1 models, median 99.95 % predicted"]
    assert [bar.get_width() for bar in bars.patches] == [1, 3]  # the most frequent reason on top


def test_outstanding_models_are_named_and_long_reasons_cut() -> None:
    figure = draw_coverage(**RECORDS, title="Title")
    names = [text.get_text() for text in figure.axes[0].texts]
    assert "odd" in names
    assert "resnet" not in names
    reasons = [text.get_text() for text in figure.axes[1].texts]
    assert reasons[1] == "3  a short reason"
    assert reasons[0].startswith("1  a reason that goes on")
    assert reasons[0].endswith("...")


def test_names_never_lie_on_each_other() -> None:
    many = 60
    figure = draw_coverage(
        [f"model{index}" for index in range(many)],
        ["timm"] * many,
        [1000] * many,
        list(range(6, 6 + many)),
        [("reason", many)],
        title="Title",
    )
    heights = sorted(np.log10(text.xy[1]) for text in figure.axes[0].texts if text.get_text().startswith("model"))
    assert len(heights) > 1
    low, high = np.log10(figure.axes[0].get_ylim())
    assert np.diff(heights).min() > 0.05 * (high - low)


@pytest.mark.parametrize("reasons", [[], [("one", 1)]])
def test_a_single_model_is_drawn(reasons) -> None:
    figure = draw_coverage(["a"], ["timm"], [10], [0], reasons, title="Title")
    figure.canvas.draw()
    assert len(figure.axes) == 2


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"hf_paraminit\[plots\]"):
        draw_coverage(**RECORDS, title="Title")

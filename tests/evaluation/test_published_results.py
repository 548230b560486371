"""The published results of GHN-3, as its repository has them (one JSON object per network)."""

from pathlib import Path

import pytest

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.evaluation.published_results import published_summary, read_published
from hf_paraminit.evaluation.zero_shot import parameter_norm

FILE = Path(__file__).parents[1] / "golden" / "evaluation" / "ghn3_results.jsonl"


@pytest.mark.parametrize(
    ("column", "mean", "best", "network"),
    [
        ("ghn2", 0.19, 1.46, "resnet101"),
        ("ghn3-t", 0.69, 10.77, "wide_resnet50_2"),
        ("ghn3", 1.66, 22.64, "wide_resnet50_2"),
        ("ghn3-sgd1ep", 25.42, 44.02, "wide_resnet50_2"),
        ("ghn3-sgd10ep", 51.79, 68.05, "regnet_y_32gf"),
        ("randinit-sgd1ep", 17.36, 28.34, "regnet_y_8gf"),
        ("randinit-sota", 76.33, 85.81, "efficientnet_v2_l"),
    ],
)
def test_the_means_are_those_of_the_paper(column: str, mean: float, best: float, network: str) -> None:
    found = published_summary(read_published(FILE))[column]
    assert found["networks"] == 74
    assert found["mean"] == pytest.approx(mean, abs=0.005)
    assert found["best"] == pytest.approx(best, abs=0.005)
    assert found["best_network"] == network


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_norms_of_parameters_are_taken_as_published(name: str) -> None:
    """Another draw of the same start; over a million values the norm varies by less than a percent."""
    models = pytest.importorskip("torchvision.models")
    published = read_published(FILE)[name]["randinit-paramnorm"]
    assert parameter_norm(models.get_model(name, weights=None)) == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("content", ["", "not json", "[1, 2]", '{"resnet18": {"ghn3": "high"}}', '{"resnet18": 3}'])
def test_other_files_are_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(content)
    with pytest.raises(TrainingConfigError, match=r"results\.json"):
        read_published(file)
    with pytest.raises(TrainingConfigError, match="Cannot read"):
        read_published(tmp_path / "missing.json")

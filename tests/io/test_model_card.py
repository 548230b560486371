"""The model card is a README that the Hub can read."""

import pytest
from huggingface_hub import ModelCard as HubModelCard

from hf_paraminit.io.model_card import MetricTable, ModelCard

CARD = ModelCard(
    title="tiny-ghn3",
    summary="A GHN-3 for tests; costs $0.",
    init="hf-hub:someone/tiny-ghn3",
    predicts="Convolutions and linear layers.",
    training_data="Synthetic shapes: made by the package, 8 classes.",
    command="paraminit train ghn3 --steps 100 --output out",
    cost="12 minutes on 2 CPU cores.",
    metrics=[
        MetricTable(caption="Accuracy, %", columns=["model", "a|b"], rows=[["resnet18", 31.5], ["vit: tiny", 7]]),
        MetricTable(caption="Loss", columns=["step"], rows=[]),
    ],
    limits=["Not for text.", "Not for 3-D images."],
    tags=["ghn3", "weight-initialization"],
)


def test_front_matter_is_what_the_hub_reads() -> None:
    data = HubModelCard(CARD.render()).data
    assert (data.library_name, data.license) == ("hf_paraminit", "apache-2.0")
    assert data.tags == ["hf_paraminit", "weight-initialization", "ghn3"]


def test_every_field_is_in_the_text() -> None:
    text = HubModelCard(CARD.render()).text
    for part in (CARD.title, CARD.summary, CARD.predicts, CARD.training_data, CARD.command, CARD.cost, *CARD.limits):
        assert part in text
    assert 'timm.create_model("resnet50", init="hf-hub:someone/tiny-ghn3")' in text
    assert "Converted from" not in text
    assert "$title" not in text


def test_table_is_markdown() -> None:
    table = "Accuracy, %\n\n| model | a\\|b |\n| --- | --- |\n| resnet18 | 31.5 |\n| vit: tiny | 7 |"
    assert table in CARD.render()


def test_ragged_table_is_refused() -> None:
    with pytest.raises(ValueError, match="ragged table 'x': every row needs 2 cells"):
        MetricTable(caption="x", columns=["a", "b"], rows=[[1]])

"""The README.md of a predictor repository: what it predicts, how it was made, what it costs, where it fails."""

from collections.abc import Sequence
from dataclasses import dataclass
from string import Template

from huggingface_hub import ModelCardData

LIBRARY_NAME = "hf_paraminit"

_CARD = Template("""\
---
$front_matter
---

# $title

$summary

```python
import timm, hf_paraminit

model = timm.create_model("resnet50", init="$init")
```

## What it predicts

$predicts

## Training data

$training_data

## How it was made

```
$command
```

Cost: $cost
$provenance
## Results

$metrics

## Limits

$limits
""")


@dataclass(frozen=True, kw_only=True)
class MetricTable:
    """One table of measured numbers; every row has a cell for every column."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), f"ragged table {self.caption!r}"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a reader of a predictor repository must know. All texts may use Markdown.

    Attributes:
        title: heading, usually the repository's name.
        summary: one paragraph.
        init: value of `init=` that selects this predictor.
        predicts: which tensors of which models are predicted, and which are not.
        training_data: what it was trained on, and where that comes from.
        command: the exact command that made the weights.
        cost: machine, time and energy as measured.
        metrics: measured results.
        limits: known failures and untested uses, one per entry.
        license: identifier from the Hub's list of licenses.
        tags: further tags beside the package's own.
        converted_from: source of converted weights (repository, file, sha256), empty for own training.
    """

    title: str
    summary: str
    init: str
    predicts: str
    training_data: str
    command: str
    cost: str
    metrics: Sequence[MetricTable]
    limits: Sequence[str]
    license: str = "apache-2.0"
    tags: Sequence[str] = ()
    converted_from: str = ""

    def render(self) -> str:
        """The card as Markdown with the YAML front matter that the Hub reads."""
        front_matter = ModelCardData(
            library_name=LIBRARY_NAME,
            license=self.license,
            tags=[LIBRARY_NAME, "weight-initialization", *self.tags],
        )
        return _CARD.substitute(
            front_matter=front_matter.to_yaml(),
            title=self.title,
            summary=self.summary,
            init=self.init,
            predicts=self.predicts,
            training_data=self.training_data,
            command=self.command,
            cost=self.cost,
            provenance=f"\nConverted from: {self.converted_from}\n" if self.converted_from else "",
            metrics="\n\n".join(_markdown_table(table) for table in self.metrics),
            limits="\n".join(f"* {limit}" for limit in self.limits),
        )


def _markdown_table(table: MetricTable) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return f"{table.caption}\n\n" + "\n".join(_markdown_row(line) for line in lines)


def _markdown_row(cells: Sequence[str | int | float]) -> str:
    return "| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |"

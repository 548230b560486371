"""The README.md of a predictor repository: what it predicts, how it was made, what it costs, where it fails."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

from huggingface_hub import ModelCardData

from hf_paraminit.errors import CheckpointError

LIBRARY_NAME = "hf_paraminit"
PLACEHOLDER_REPOSITORY = "ORGANISATION/REPOSITORY"  # until a push gives the predictor a name

_CARD = Template("""\
---
$front_matter
---

# $title

$summary

```python
$example
```

## What it predicts

$predicts
$coverage
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
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"ragged table {self.caption!r}: every row needs {len(self.columns)} cells")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a reader of a predictor repository must know. All texts may use Markdown.

    Attributes:
        title: heading, usually the repository's name.
        summary: one paragraph.
        init: value of `init=` that selects this predictor.
        example: Python that starts a model with it; "$init" in it stands for that value.
        predicts: which tensors of which models are predicted, and which are not.
        training_data: what it was trained on, and where that comes from.
        command: the exact command that made the weights.
        cost: machine, time and energy as measured.
        metrics: measured results.
        coverage: tables of how much of which models is predicted.
        limits: known failures and untested uses, one per entry.
        license: identifier from the Hub's list of licenses.
        tags: further tags beside the package's own.
        pipeline_tag: identifier from the Hub's list of tasks, if one fits.
        converted_from: source of converted weights (repository, file, sha256), empty for own training.
        source_license: licence of that source.
        sources: papers, repositories and data sets that it builds on, one per entry.
    """

    title: str
    summary: str
    init: str
    example: str = 'import timm, hf_paraminit\n\nmodel = timm.create_model("resnet50", init="$init")'
    predicts: str
    training_data: str
    command: str
    cost: str
    metrics: Sequence[MetricTable]
    limits: Sequence[str]
    coverage: Sequence[MetricTable] = ()
    license: str = "apache-2.0"
    tags: Sequence[str] = ()
    pipeline_tag: str = ""
    converted_from: str = ""
    source_license: str = "not recorded; read it at the source before you publish the weights"
    sources: Sequence[str] = ()

    def render(self) -> str:
        """The card as Markdown with the YAML front matter that the Hub reads."""
        front_matter = ModelCardData(
            library_name=LIBRARY_NAME,
            license=self.license,
            pipeline_tag=self.pipeline_tag or None,
            tags=[LIBRARY_NAME, "weight-initialization", *self.tags],
        )
        return _CARD.substitute(
            front_matter=front_matter.to_yaml(),
            title=self.title,
            summary=self.summary,
            example=Template(self.example).safe_substitute(init=self.init),
            predicts=self.predicts,
            training_data=self.training_data,
            command=self.command,
            cost=self.cost,
            coverage="".join(f"\n{_markdown_table(table)}\n" for table in self.coverage),
            provenance=self._provenance(),
            metrics="\n\n".join(_markdown_table(table) for table in self.metrics),
            limits=_markdown_list(self.limits),
        )

    def _provenance(self) -> str:
        converted = f"\nConverted from: {self.converted_from}\n" if self.converted_from else ""
        licence = f"\nLicence of the source: {self.source_license}\n" if self.converted_from else ""
        sources = f"\n## Sources\n\n{_markdown_list(self.sources)}\n" if self.sources else ""
        return converted + licence + sources


def card_from_record(
    record: Mapping[str, Any],
    *,
    license: str | None = None,
    tags: Sequence[str] | None = None,
    pipeline_tag: str | None = None,
) -> ModelCard:
    """The card of a predictor from `metadata["card"]` in its `config.json`; what that leaves out says so.

    Args:
        record: `paraminit_type` and `metadata` are read.
        license: identifier where the record names none.
        tags: of the predictor's class.
        pipeline_tag: of the predictor's class.

    Raises:
        CheckpointError: entries that a card does not have, or of another form.
    """
    kind, metadata = record["paraminit_type"], record.get("metadata", {})
    source, sha256 = metadata.get("converted_from"), metadata.get("converted_from_sha256")
    facts: dict[str, Any] = {
        "title": f"{kind} predictor",
        "summary": f"A {kind} network that predicts initial weights of vision models.",
        "init": f"hf-hub:{PLACEHOLDER_REPOSITORY}",
        "predicts": "Every tensor that the report of `hf_paraminit.initialize` lists as predicted.",
        "training_data": "Not recorded.",
        "command": "Not recorded.",
        "cost": "Not recorded.",
        "metrics": (),
        "limits": ["Not evaluated."],
        "license": "unknown" if source else license or "apache-2.0",  # of converted weights only the source can tell
        "tags": [kind, *(tags or ())],
        "pipeline_tag": pipeline_tag or "",
        "converted_from": ", SHA-256 ".join(str(part) for part in (source, sha256) if part),
    }
    try:
        known = dict(metadata.get("card", {}))
        tables = {name: [MetricTable(**table) for table in known.get(name, ())] for name in ("metrics", "coverage")}
        return ModelCard(**{**facts, **known, **tables})
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"The predictor's metadata['card'] does not describe a model card: {error}. Its entries are those of "
            "hf_paraminit.io.model_card.ModelCard; correct or remove it."
        ) from error


def _markdown_list(entries: Sequence[str]) -> str:
    return "\n".join(f"* {entry}" for entry in entries)


def _markdown_table(table: MetricTable) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return f"{table.caption}\n\n" + "\n".join(_markdown_row(line) for line in lines)


def _markdown_row(cells: Sequence[str | int | float]) -> str:
    return "| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |"

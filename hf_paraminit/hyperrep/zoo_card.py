"""The README.md of a zoo: what was trained on what, how well it did, and how to read it; a data-set card of the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from string import Template
from typing import Any

from huggingface_hub import DatasetCardData
from torch import Tensor

from hf_paraminit.errors import CheckpointError
from hf_paraminit.hyperrep.zoo import SPLITS, Zoo
from hf_paraminit.io.atomic import atomic_write

README_FILE = "README.md"
METRICS = ("train_accuracy", "validation_accuracy", "test_accuracy", "generalization_gap")

_CARD = Template("""\
---
$front_matter
---

# Model zoo of $architecture on $data

$num_models networks of one architecture, $architecture, trained on: $data. Each has checkpoints after the epochs
$epochs. A model belongs to one split with all its epochs: $splits.

```python
from hf_paraminit.hyperrep.zoo import Zoo

zoo = Zoo.open("FOLDER")
best = zoo.select(split="train", last=True, top=0.3)
weights = best.stacked()  # name -> (networks, *shape)
```

## How it was made

$command

| setting | values |
|---|---|
$settings

## Results

Accuracy in percent, mean ± standard deviation over the networks.

| epoch | $metrics |
|---|$rule
$results

## Files

* `zoo_config.json`: architecture, data, settings and which hidden units may be permuted; `layout.json`: the tensors.
* `models.jsonl`: one row for each checkpoint with its split, settings, accuracies, losses, file and row.
* `data/`: safetensors. Row r of every tensor of a stacked file is one checkpoint; other files hold one checkpoint each.

## Licence and limits

No licence was chosen: do so before you publish it, with an eye on that of the images. $faults
""")


def write_readme(zoo: Zoo) -> None:
    """Write the card of a zoo into its folder, over an older one.

    Raises:
        OutputError: The folder cannot be written.
    """
    with atomic_write(zoo.folder / README_FILE) as path:
        path.write_text(render(zoo))


def render(zoo: Zoo) -> str:
    """The card as Markdown with the front matter that the Hub reads."""
    card = zoo.card
    epochs = sorted({row.epoch for row in zoo.rows})
    counts = {split: len(zoo.select(split=split).model_ids) for split in SPLITS}
    results = {epoch: accuracies(zoo.select(epochs=[epoch])) for epoch in epochs}
    return _CARD.substitute(
        front_matter=DatasetCardData(tags=["hf_paraminit", "model-zoo", "weight-space-learning"]).to_yaml(),
        architecture=card.get("architecture", "unnamed networks"),
        data=card.get("data", "unknown data"),
        num_models=len(zoo.model_ids),
        epochs=", ".join(map(str, epochs)),
        splits=", ".join(f"{count} {split}" for split, count in counts.items()),
        command=_origin(card),
        settings="\n".join(_setting_lines(card)),
        metrics=" | ".join(name.replace("_", " ") for name in METRICS),
        rule="---|" * len(METRICS),
        results="\n".join(_result_line(epoch, found) for epoch, found in results.items()),
        faults=f"Left out: {'; '.join(zoo.faults)}." if zoo.faults else "",
    )


def accuracies(zoo: Zoo) -> dict[str, dict[str, float] | None]:
    """Mean, standard deviation and largest value over the rows of each of `METRICS`; None where no row has it."""
    found: dict[str, dict[str, float] | None] = {}
    for name in METRICS:
        try:
            found[name] = _summary(zoo.values(name))
        except CheckpointError:  # published zoos lack some
            found[name] = None
    return found


def _summary(values: Tensor) -> dict[str, float] | None:
    known = values[values.isfinite()]
    if len(known) == 0:
        return None
    deviation = float(known.std()) if len(known) > 1 else 0.0
    return {"mean": round(float(known.mean()), 6), "std": round(deviation, 6), "max": round(float(known.max()), 6)}


def _result_line(epoch: int, found: Mapping[str, dict[str, float] | None]) -> str:
    return f"| {epoch} | {' | '.join(_cell(found[name]) for name in METRICS)} |"


def _cell(summary: dict[str, float] | None) -> str:
    return "-" if summary is None else f"{100 * summary['mean']:.1f} ± {100 * summary['std']:.1f}"


def _origin(card: Mapping[str, Any]) -> str:
    if "command" in card:
        return f"```\n{card['command']}\n```"
    if "imported_from" in card:
        return f"Imported from the published layout, folder `{card['imported_from']}`."
    return "By `hf_paraminit.hyperrep.zoo_build.build_zoo`."


def _setting_lines(card: Mapping[str, Any]) -> list[str]:
    settings = {"seeds": card.get("num_seeds", "-"), "network": card.get("network", "-"), **card.get("settings", {})}
    return [f"| {name} | {_plain(values)} |" for name, values in settings.items()]


def _plain(values: Any) -> str:
    if isinstance(values, list):
        return ", ".join(map(_plain, values))
    return values if isinstance(values, str) else json.dumps(values)

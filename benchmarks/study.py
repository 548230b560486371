"""Small studies that can be interrupted: one JSON line per finished cell, then a CSV file and a table in Markdown."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

import hf_paraminit  # noqa: F401 (adds init= to timm)
from hf_paraminit.evaluation.runner import Runner
from hf_paraminit.io.atomic import atomic_write
from hf_paraminit.io.run_store import Record, RunStore, locked

STUDENT_95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36}  # two-sided, by degrees of freedom


def parser(description: str, *, seeds: int) -> argparse.ArgumentParser:
    """Arguments that all studies share."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder; run again to go on")
    arguments.add_argument("--seeds", type=int, default=seeds, help=f"trainings of each network (default: {seeds})")
    arguments.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: 1)")
    arguments.add_argument("--quick", action="store_true", help="a tiny case: does the script work?")
    return arguments


@dataclass(frozen=True)
class Study:
    """Cells of one kind, each a frozen dataclass of JSON values that alone decides its result.

    Args:
        compute: The result of a cell, as JSON values.
    """

    compute: Callable[[Any], Record]

    def key(self, cell: Any) -> str:
        """Kind and values of a cell."""
        return json.dumps([type(cell).__name__, dataclasses.asdict(cell)])

    def records(self, cells: Sequence[Any], folder: Path, title: str) -> list[Record]:
        """Results of all cells, computing those that the folder does not hold; the cell's own values stand beside."""
        with locked(folder):
            return Runner(self, RunStore(folder), processes=1, run=_computed).compute(cells, title)


def predictor_of(init: str) -> str:
    """Digest of the trained predictor behind a name: another file under the same name gives other results."""
    model = timm.create_model("test_vit", init=init)
    return str(model._hf_paraminit.sha256)[:12]


def prepare(arguments: argparse.Namespace) -> None:
    """Apply the shared arguments."""
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        arguments.seeds = min(arguments.seeds, 2)


def write(folder: Path, header: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "table") -> None:
    """Print a table, and write it to TITLE.md."""
    text = markdown(header, rows)
    with atomic_write(folder / f"{title}.md") as path:
        path.write_text(text + "\n")
    print(f"\n{text}")


def write_csv(folder: Path, records: Sequence[Record], *, title: str = "cells") -> None:
    """Write records of equal keys to TITLE.csv."""
    with atomic_write(folder / f"{title}.csv") as path, path.open("w", newline="") as stream:
        lines = csv.DictWriter(stream, list(records[0]))
        lines.writeheader()
        lines.writerows(records)


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(value) for value in line)} |" for line in lines)


def with_interval(values: Sequence[float], digits: int = 1, *, sign: bool = False) -> str:
    """Mean and 95 % t interval over seeds, as text."""
    mean = statistics.fmean(values)
    text = f"{mean:{'+' if sign else ''}.{digits}f}"
    if not 2 <= len(values) <= 1 + max(STUDENT_95):
        return text
    half = STUDENT_95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{text} +- {half:.{digits}f}"


def _computed(study: Study, cell: Any) -> Record:
    return {"key": study.key(cell), "status": "done", **dataclasses.asdict(cell), **study.compute(cell)}

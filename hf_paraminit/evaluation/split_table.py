"""Tables of evaluations by network: per group the mean, its standard error, the best."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_paraminit.evaluation.experiment import Record
from hf_paraminit.io.atomic import atomic_write


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitRow:
    """One measure over the networks of a group.

    Attributes:
        init: Label of the initialisation.
        group: Split of DeepNets-1M, or package.
        measure: What was measured.
        count: Networks with a value.
        failed: Networks without one.
        mean: Over networks; NaN where there is none.
        deviation: Standard deviation over networks (published for GHN-3).
        standard_error: Of the mean (published for GHN-2).
        best: Largest value.
        best_network: Where it was.
    """

    init: str
    group: str
    measure: str
    count: int
    failed: int
    mean: float
    deviation: float
    standard_error: float
    best: float
    best_network: str


def split_rows(records: Iterable[Record], measures: Sequence[str], *, field: str = "") -> list[SplitRow]:
    """Summarise finished cells.

    Args:
        records: As `compute_cells` returns them.
        measures: Names of numbers in the records.
        field: Entry of a record that holds them; empty for the record itself.

    Returns:
        One row per initialisation, group and measure, in order of appearance.
    """
    cells: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        cells[record["init"], record["group"]].append(record)
    return [_row(init, group, measure, found, field) for (init, group), found in cells.items() for measure in measures]


def flat_rows(records: Iterable[Record], fields: Sequence[str]) -> list[Record]:
    """One flat row per cell: who it is, and the named entries, those of nested ones as `FIELD_NAME`."""
    rows = []
    for record in records:
        row = {name: record[name] for name in ("init", "group", "network", "seed", "status")}
        for name in fields:
            value = record.get(name)
            if isinstance(value, Mapping):
                row |= {f"{name}_{key}": entry for key, entry in value.items()}
            elif value is not None:
                row[name] = value
        rows.append(row | {"error": record.get("error", "")})
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write flat rows as CSV; what a row lacks stays empty. The file is replaced as a whole.

    Raises:
        OutputError: It cannot be written.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def write_summary(path: Path, rows: Sequence[SplitRow], settings: Mapping[str, Any]) -> None:
    """Write a summary and what it is of as JSON; NaN becomes null.

    Raises:
        OutputError: It cannot be written.
    """
    document = {"settings": dict(settings), "rows": [json_row(row) for row in rows]}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1, default=repr, allow_nan=False) + "\n", encoding="utf-8")


def json_row(row: SplitRow) -> Record:
    """A row as JSON values."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(row).items()
    }


def _row(init: str, group: str, measure: str, records: Sequence[Record], field: str) -> SplitRow:
    found = [
        (value, record["network"])
        for record in records
        if record["status"] == "done"
        and (value := (record[field] if field else record).get(measure)) is not None
        and math.isfinite(value)
    ]
    values = [value for value, _ in found]
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    best, best_network = max(found, key=lambda pair: pair[0], default=(math.nan, ""))
    return SplitRow(
        init=init,
        group=group,
        measure=measure,
        count=len(values),
        failed=len(records) - len(values),
        mean=statistics.fmean(values) if values else math.nan,
        deviation=deviation,
        standard_error=deviation / math.sqrt(len(values)) if values else math.nan,
        best=best,
        best_network=best_network,
    )

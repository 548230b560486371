"""Coverage records as files: CSV, JSON, and a page of Markdown."""

from __future__ import annotations

import csv
import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_paraminit.evaluation.coverage import Coverage

TITLE = "# Coverage"
FULL_SHARE = 0.995  # models below it are listed with what is kept
LEAST_SHARE = 0.9
_COLUMNS = (
    *(field.name for field in dataclasses.fields(Coverage) if field.name not in ("kept", "error")),
    "share",
    "kept",
    "error",
)


def sorted_records(records: Iterable[Coverage]) -> list[Coverage]:
    """Order by source, head and name, whatever order they were finished in."""
    return sorted(records, key=lambda record: (record.source, record.head, record.model))


def summarize(records: Sequence[Coverage]) -> dict[str, Any]:
    """Count the models of one source.

    Returns:
        models, ok, errors, median_share and least_share (None without an ok model), full (share >= 99.5 %), low (below
        90 %), auto_compat and auto_native (what `mode="auto"` takes), elements, covered_elements, seconds.
    """
    ok = [record for record in records if record.status == "ok"]
    shares = [record.share for record in ok]
    return {
        "models": len(records),
        "ok": len(ok),
        "errors": len(records) - len(ok),
        "median_share": statistics.median(shares) if shares else None,
        "least_share": min(shares, default=None),
        "full": sum(share >= FULL_SHARE for share in shares),
        "low": sum(share < LEAST_SHARE for share in shares),
        "auto_compat": sum(record.auto_mode == "compat" for record in ok),
        "auto_native": sum(record.auto_mode == "native" for record in ok),
        "elements": sum(record.elements for record in ok),
        "covered_elements": sum(record.covered_elements for record in ok),
        "seconds": round(sum(record.seconds for record in records), 1),
    }


def summaries(records: Sequence[Coverage]) -> dict[str, dict[str, Any]]:
    """Summarize each source."""
    sources = sorted({record.source for record in records})
    return {source: summarize([record for record in records if record.source == source]) for source in sources}


def write_csv(records: Sequence[Coverage], path: Path) -> None:
    """Write one line per model; `kept` is a JSON object of reason -> elements."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for record in records:
            values = {**dataclasses.asdict(record), "share": f"{record.share:.6f}", "kept": json.dumps(record.kept)}
            writer.writerow([values[column] for column in _COLUMNS])


def write_json(records: Sequence[Coverage], settings: Mapping[str, Any], path: Path) -> None:
    """Write settings, a summary per source, and a record per model."""
    rows = [{**dataclasses.asdict(record), "share": round(record.share, 6)} for record in records]
    lines = ",\n".join(json.dumps(row) for row in rows)
    head = json.dumps({"settings": dict(settings), "summary": summaries(records)})
    path.write_text(f'{head[:-1]}, "models": [\n{lines}\n]}}\n', encoding="utf-8")


def markdown(records: Sequence[Coverage], settings: Mapping[str, Any], command: str) -> str:
    """Render the summary, every model below 99.5 % with what it keeps, and the errors.

    Args:
        records: In the order of the table.
        settings: What they depend on.
        command: The command line that regenerates the page.
    """
    ok = [record for record in records if record.status == "ok"]
    below = sorted((record for record in ok if record.share < FULL_SHARE), key=lambda record: record.share)
    failed = [record for record in records if record.status != "ok"]
    versions = ", ".join(f"{name} {value}" for name, value in settings.items())
    return "\n".join(
        [
            TITLE,
            "",
            "Which share of each architecture the hypernetwork initialises; the rest keeps the model's own start, each "
            "tensor with its reason.",
            "`coverage.csv` has a line per model; a sweep resumes from `coverage.jsonl`. Written by",
            "",
            f"    {command}",
            "",
            f"({versions})",
            "",
            "![kept elements of every model](coverage.png)",
            "",
            "## Summary",
            "",
            *_summary_table(records),
            "",
            f"## Below {FULL_SHARE:.1%}",
            "",
            *(_table(("model", "source", "predicted", "kept (share of elements)"), map(_low_row, below))),
            "",
            "## Errors",
            "",
            *(_table(("model", "source", "head", "error"), map(_error_row, failed))),
            "",
        ]
    )


def _summary_table(records: Sequence[Coverage]) -> list[str]:
    header = (
        "source",
        "models",
        "ok",
        "median",
        "least",
        f"at least {FULL_SHARE:.1%}",
        f"below {LEAST_SHARE:.0%}",
        "auto takes compat / native",
        "parameters",
        "predicted",
        "seconds of one core",
    )
    rows = []
    for source, summary in summaries(records).items():
        total = summary["elements"]
        rows.append(
            (
                source,
                f"{summary['models']:,}",
                f"{summary['ok']:,}",
                _percent(summary["median_share"]),
                _percent(summary["least_share"]),
                f"{summary['full']:,}",
                f"{summary['low']:,}",
                f"{summary['auto_compat']:,} / {summary['auto_native']:,}",
                f"{total / 1e9:.2f} billion",
                _percent(summary["covered_elements"] / total if total else None),
                f"{summary['seconds']:,.0f}",
            )
        )
    return _table(header, rows)


def _low_row(record: Coverage) -> tuple[str, ...]:
    reasons = "; ".join(f"{size / record.elements:.1%} {reason}" for reason, size in record.kept.items())
    return record.model, record.source, _percent(record.share), reasons


def _error_row(record: Coverage) -> tuple[str, ...]:
    return record.model, record.source, record.head, record.error


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    if not lines:
        return ["None."]
    return [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *lines]

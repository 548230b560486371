"""Timing in turns, and tables of the results."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from hf_paraminit.cli.table import table

Record = dict[str, Any]


def interleaved(functions: Sequence[Callable[[], object]], *, repeats: int) -> list[float]:
    """Time functions in turns (A B A B ...), after one warm-up of each.

    Returns:
        Median seconds of each.
    """
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats + 1):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken[1:]) for taken in times]


def verdict(*, is_met: bool) -> str:
    """The word in the last column."""
    return "met" if is_met else "missed"


def parser(description: str) -> argparse.ArgumentParser:
    """Arguments that all benchmarks share."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--json", type=Path, metavar="FILE", help="write the records to FILE as well")
    arguments.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: 1)")
    arguments.add_argument("--repeats", type=int, default=5, help="timed runs of each function (default: 5)")
    arguments.add_argument("--quick", action="store_true", help="one tiny case, timed once: does the script work?")
    return arguments


def prepare(arguments: argparse.Namespace) -> None:
    """Apply the shared arguments."""
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        arguments.repeats = 1


def report(title: str, records: Sequence[Record]) -> None:
    """Print records of equal keys as a table with a line for each."""
    if records:
        print(f"\n{title}\n{table(list(records[0]), [[_cell(value) for value in line.values()] for line in records])}")


def save(arguments: argparse.Namespace, results: Record) -> None:
    """Write the results where `--json` says, with what they depend on."""
    if arguments.json is not None:
        setting = {"threads": arguments.threads, "repeats": arguments.repeats, "torch": torch.__version__}
        arguments.json.write_text(json.dumps({**setting, **results}, indent=1) + "\n")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)

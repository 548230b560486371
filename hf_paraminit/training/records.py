"""What a run tells about itself: one JSON line per record, and the trackers that Accelerate knows."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import gather_object

from hf_paraminit.errors import MissingDependencyError
from hf_paraminit.io.atomic import atomic_write

KNOWN_TRACKERS = tuple(sorted(map(str, LOGGER_TYPE_TO_CLASS)))


def require_trackers(names: Sequence[str]) -> None:
    """Check that the packages of some trackers are installed.

    Raises:
        MissingDependencyError: Not all of them; the message names those that are missing.
    """
    installed = set(map(str, get_available_trackers()))
    if missing := [name for name in names if name not in installed]:
        raise MissingDependencyError(
            f"Training configuration: trackers {', '.join(names)} were asked for; not installed: {', '.join(missing)} "
            f"(installed: {', '.join(sorted(installed)) or 'none'}). Run `pip install {' '.join(missing)}`, or leave "
            "them out: metrics.jsonl is written in any case."
        )


def average_over_processes(metrics: Mapping[str, float]) -> dict[str, float]:
    """Mean of each metric over the processes that have it; every process has to call this."""
    gathered = gather_object([dict(metrics)])
    names = dict.fromkeys(name for found in gathered for name in found)
    values = {name: [found[name] for found in gathered if name in found] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}


class MetricLog:
    """Appends one JSON line per record; records after a restored step are dropped, because they will be repeated."""

    def __init__(self, path: Path, step: int, accelerator: Accelerator) -> None:
        self.path = path
        self.accelerator = accelerator
        self.started = time.perf_counter()
        if accelerator.is_main_process:
            lines = path.read_text().splitlines(keepends=True) if path.exists() else []
            # A killed run may have left half a line at the end.
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            with atomic_write(path) as temporary:
                temporary.write_text("".join(kept))

    def write(self, counters: Mapping[str, int], metrics: Mapping[str, float], learning_rate: float) -> None:
        """Append one record."""
        if self.accelerator.is_main_process:
            # JSON has no NaN.
            values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            record = {**counters, **values, "learning_rate": learning_rate, **self._cost()}
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        self.accelerator.log({**metrics, "learning_rate": learning_rate}, step=counters["step"])

    def _cost(self) -> dict[str, float]:
        """Seconds since the start of this process's part of the run, and on a GPU its peak memory in MiB."""
        cost = {"seconds": round(time.perf_counter() - self.started, 3)}
        if self.accelerator.device.type == "cuda":
            cost["peak_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        return cost

"""What a piece of work costs: wall time, processor time, memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # what Linux takes in `clear_refs` to start the peak anew (proc(5))


@contextmanager
def measured(phase: str, costs: dict[str, float | None]) -> Iterator[None]:
    """Note what the block costs under `PHASE_seconds`, `PHASE_cpu_seconds` and `PHASE_peak_mb`.

    The peak is the memory above that at the start of the block; None where the system cannot tell.
    """
    with suppress(OSError):
        CLEAR.write_text(RESET_PEAK)
    before, wall, cpu = _resident_mb("VmRSS"), time.perf_counter(), time.process_time()
    yield
    costs[f"{phase}_seconds"] = round(time.perf_counter() - wall, 4)
    costs[f"{phase}_cpu_seconds"] = round(time.process_time() - cpu, 4)
    peak = _resident_mb("VmHWM")
    costs[f"{phase}_peak_mb"] = None if before is None or peak is None else round(max(0.0, peak - before), 1)


def _resident_mb(field: str) -> float | None:
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    return None

"""Which of the processes of a launcher this is; work that falls into independent pieces is split over them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from typing import TypeVar

from accelerate import PartialState

from hf_paraminit.errors import MissingDependencyError, ParamInitError

Piece = TypeVar("Piece")
Result = TypeVar("Result")

PATIENCE = timedelta(days=7)  # of those who wait for each other; a process that died is noticed by the launcher
LAUNCHED = "WORLD_SIZE"  # torchrun and `accelerate launch` set it for several processes


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_launched() -> bool:
    """Whether a launcher started several processes of this run."""
    return int(os.environ.get(LAUNCHED, "1")) > 1


def launched_state() -> PartialState:
    """This process among the launcher's. Cells are computed on the CPU, so the processes talk over it as well."""
    return PartialState(cpu=True, timeout=PATIENCE)


def process_index() -> int:
    """Number of this process among the launcher's; 0 without one."""
    return launched_state().process_index if is_launched() else 0


def process_count() -> int:
    """Number of the launcher's processes; 1 without one."""
    return launched_state().num_processes if is_launched() else 1


def is_main_process() -> bool:
    """Whether this process reports."""
    return process_index() == 0


def in_workers(compute: Callable[[Piece], Result], pieces: Iterable[Piece], processes: int) -> Iterator[Result]:
    """Yield the results of all pieces as they come, from worker processes of this machine.

    Joblib's workers need no `if __name__ == "__main__"`, and take functions that were defined in a notebook.

    Raises:
        MissingDependencyError: joblib is not installed.
        ParamInitError: A worker was ended from outside.
    """
    try:
        from joblib import Parallel, delayed
    except ImportError as error:
        raise MissingDependencyError(
            'Several processes need joblib, which comes with scikit-learn: pip install "hf_paraminit[data]".'
        ) from error
    parallel = Parallel(n_jobs=processes, return_as="generator_unordered", pre_dispatch="2*n_jobs", batch_size=1)
    results = parallel(delayed(compute)(piece) for piece in pieces)
    try:
        yield from results
    except BrokenProcessPool as error:
        raise ParamInitError(
            f"One of {processes} worker processes was ended from outside, probably for lack of memory. What is "
            "finished is kept: run the same again with fewer processes."
        ) from error
    finally:
        results.close()


def wait_for_everyone() -> None:
    """Go on when all processes of the launcher are here; at once without one."""
    if is_launched():
        launched_state().wait_for_everyone()

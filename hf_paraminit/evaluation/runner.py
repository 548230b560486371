"""Cells over processes: those that are finished are not computed again, each new one is kept at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

from accelerate import PartialState
from tqdm.auto import tqdm

from hf_paraminit.errors import MissingDependencyError, ParamInitError
from hf_paraminit.evaluation.experiment import Cell, Experiment, Record, run_cell
from hf_paraminit.evaluation.run_store import RunStore

LAUNCHED = "WORLD_SIZE"  # torchrun and `accelerate launch` set it for several processes


class Runner:
    """Computes cells: alone, on several worker processes of this machine, or as one of a launcher's processes.

    Args:
        experiment: What the cells belong to.
        store: Where records are kept.
        processes: Worker processes where no launcher gave any; None for one per core.
    """

    def __init__(self, experiment: Experiment, store: RunStore, *, processes: int | None = None) -> None:
        self.experiment = experiment
        self.store = store
        self.processes = processes or usable_cores()

    def compute(self, cells: Sequence[Cell], title: str) -> list[Record]:
        """Return the records of all cells, computing those that are not there yet.

        Args:
            cells: What to compute.
            title: What the progress bar says.
        """
        keys = {self.experiment.key(cell): cell for cell in cells}
        pending = [cell for key, cell in keys.items() if not self.store.is_done(key)]
        bar = tqdm(
            total=len(keys), initial=len(keys) - len(pending), desc=title, unit="cell", disable=not is_main_process()
        )
        with bar:
            for record in self._results(pending):
                self.store.add(record)
                bar.update()
        if is_launched():
            launched_state().wait_for_everyone()
            self.store.read()
        return self.store.of(keys)

    def _results(self, cells: list[Cell]) -> Iterator[Record]:
        if is_launched():
            with launched_state().split_between_processes(cells) as mine:
                yield from (run_cell(self.experiment, cell) for cell in mine)
        elif self.processes == 1 or len(cells) < 2:
            yield from (run_cell(self.experiment, cell) for cell in cells)
        else:
            yield from _in_workers(self.experiment, cells, min(self.processes, len(cells)))


def _in_workers(experiment: Experiment, cells: Iterable[Cell], processes: int) -> Iterator[Record]:
    """Joblib's workers need no `if __name__ == "__main__"`, and take functions that were defined in a notebook."""
    try:
        from joblib import Parallel, delayed
    except ImportError as error:
        raise MissingDependencyError(
            'Several processes need joblib, which comes with scikit-learn: pip install "hf_paraminit[data]".'
        ) from error
    parallel = Parallel(n_jobs=processes, return_as="generator_unordered", pre_dispatch="2*n_jobs", batch_size=1)
    results = parallel(delayed(run_cell)(experiment, cell) for cell in cells)
    try:
        yield from results
    except BrokenProcessPool as error:
        raise ParamInitError(
            f"One of {processes} worker processes was ended from outside, probably for lack of memory. What is "
            "finished is kept: run the same again with fewer processes."
        ) from error
    finally:
        results.close()


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_launched() -> bool:
    """Whether a launcher started several processes of this run."""
    return int(os.environ.get(LAUNCHED, "1")) > 1


def launched_state() -> PartialState:
    """This process among the launcher's. Cells are computed on the CPU, so the processes talk over it as well."""
    return PartialState(cpu=True)


def process_index() -> int:
    """Number of this process among the launcher's; 0 without one."""
    return launched_state().process_index if is_launched() else 0


def is_main_process() -> bool:
    """Whether this process reports."""
    return process_index() == 0

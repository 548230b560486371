"""Cells over processes: those that are finished are not computed again, each new one is kept at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from tqdm.auto import tqdm

from hf_paraminit.evaluation.experiment import Record, run_cell
from hf_paraminit.io.run_store import RunStore
from hf_paraminit.training.processes import in_workers, is_launched, is_main_process, launched_state, usable_cores


class Keyed(Protocol):
    """An experiment, which says when two of its cells give equal results."""

    def key(self, cell: Any) -> str:
        """Equal for cells that give equal results."""


class Runner:
    """Computes cells: alone, on several worker processes of this machine, or as one of a launcher's processes.

    Args:
        experiment: What the cells belong to.
        store: Where records are kept.
        processes: Worker processes where no launcher gave any; None for one per core.
        run: Computes a cell of the experiment, `run_cell` by default; whatever goes wrong in it is its record.
    """

    def __init__(
        self,
        experiment: Keyed,
        store: RunStore,
        *,
        processes: int | None = None,
        run: Callable[[Any, Any], Record] | None = None,
    ) -> None:
        self.experiment = experiment
        self.store = store
        self.processes = processes or usable_cores()
        self.run: Callable[[Any, Any], Record] = run or run_cell

    def compute(self, cells: Sequence[Any], title: str) -> list[Record]:
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

    def _results(self, cells: list[Any]) -> Iterator[Record]:
        if is_launched():
            with launched_state().split_between_processes(cells) as mine:
                yield from (self.run(self.experiment, cell) for cell in mine)
        elif self.processes == 1 or len(cells) < 2:
            yield from (self.run(self.experiment, cell) for cell in cells)
        else:
            compute = functools.partial(self.run, self.experiment)
            yield from in_workers(compute, cells, min(self.processes, len(cells)))

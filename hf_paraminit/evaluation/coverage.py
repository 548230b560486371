"""How much of an architecture a graph hypernetwork can initialise: one record per model, from a resumable sweep."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hf_paraminit.errors import InitializerConfigError, OutputError, ParamInitError
from hf_paraminit.graphs.graph import ComputationalGraph
from hf_paraminit.graphs.trace import trace
from hf_paraminit.initializers.graph_hypernetwork import GraphHypernetworkInitializer
from hf_paraminit.initializers.predictor import PredictorInitializer
from hf_paraminit.initializers.registry import create
from hf_paraminit.io.atomic import atomic_write

Mode = Literal["native", "auto", "compat"]

GROUP_ELEMENTS = 200_000_000  # predicted at a time (0.8 GB), so that a network of billions fits in memory
NO_NODE = "no node in the computational graph stands for it"
DIED = "the process died, twice: killed, out of memory, or a crash of native code"
_ERROR_LENGTH = 500


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model to measure.

    Attributes:
        model: Its name in the host.
        source: The host: "timm" or "transformers".
        head: What the model ends in.
    """

    model: str
    source: str
    head: str


@dataclass(frozen=True, kw_only=True)
class Built:
    """A model, on the meta device where its constructor allows that.

    Attributes:
        module: The model.
        example_inputs: What to call it with when that is not one batch of images.
    """

    module: nn.Module
    example_inputs: Any = None


Build = Callable[[Candidate], Built]


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What a hypernetwork predicts of one model.

    Attributes:
        model: Name in the host.
        source: The host.
        head: What the model ends in.
        status: "ok", or "error" when it could not be built, traced or predicted, or a value was not usable.
        error: The message.
        mode: Kind of graph that was measured.
        auto_mode: Kind of graph that `mode="auto"` takes.
        elements: Number of parameters, tied ones counted once.
        covered_elements: Predicted ones.
        tensors: Parameter tensors.
        covered_tensors: Predicted ones.
        nodes: Of the graph.
        is_valid: Whether every predicted tensor has the right shape and finite values.
        seconds: Wall time of building, tracing twice, predicting and checking.
        kept: Reason -> elements that keep the model's own start for it.
    """

    model: str
    source: str
    head: str
    status: str
    error: str = ""
    mode: str = ""
    auto_mode: str = ""
    elements: int = 0
    covered_elements: int = 0
    tensors: int = 0
    covered_tensors: int = 0
    nodes: int = 0
    is_valid: bool = False
    seconds: float = 0.0
    kept: Mapping[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Predicted share of the elements, 0..1."""
        return self.covered_elements / self.elements if self.elements else 0.0

    @property
    def candidate(self) -> Candidate:
        """The model that was measured."""
        return Candidate(model=self.model, source=self.source, head=self.head)

    @classmethod
    def failed(cls, candidate: Candidate, message: str, seconds: float = 0.0) -> Coverage:
        """Record a failure."""
        text = " ".join(message.split())
        shown = text if len(text) <= _ERROR_LENGTH else f"{text[:_ERROR_LENGTH]} ..."
        return cls(**dataclasses.asdict(candidate), status="error", error=shown, seconds=seconds)


# --- One model -------------------------------------------------------------------------------------------------------


def find_hypernetwork(init: Any) -> Any:
    """Load the graph hypernetwork behind a name of an initializer.

    Raises:
        InitializerConfigError: The initializer reads no graphs.
        ParamInitError: There is no such initializer, or its predictor cannot be loaded.
    """
    initializer = create(init)
    if isinstance(initializer, PredictorInitializer):
        initializer = initializer.method
    if not isinstance(initializer, GraphHypernetworkInitializer):
        raise InitializerConfigError(
            f"Cannot measure the coverage of {init!r}: {type(initializer).__name__} predicts without a computational "
            "graph. Name a graph hypernetwork, as 'ghn3'."
        )
    return initializer.predictor


def measure(candidate: Candidate, build: Build, *, init: Any, mode: Mode) -> Coverage:
    """Build, trace and predict one model; a failure of the host or of tracing is a record too.

    Args:
        candidate: The model.
        build: Makes it.
        init: Name of a graph hypernetwork.
        mode: Kind of graph.
    """
    ghn = find_hypernetwork(init)
    started = time.perf_counter()
    try:
        built = build(candidate)
        graph = _traced(built, ghn, mode)
        auto_mode = graph.mode if mode == "auto" else _traced(built, ghn, "auto").mode
        shapes = {name: tuple(parameter.shape) for name, parameter in built.module.named_parameters()}
        covered, faults = _predicted(ghn, graph, shapes)
    except Exception as error:  # code of the host, which may raise anything
        return Coverage.failed(candidate, f"{type(error).__name__}: {error}", _rounded_since(started))
    sizes = {name: parameter.numel() for name, parameter in built.module.named_parameters()}
    kept: Counter[str] = Counter()
    for name in sizes.keys() - covered:
        kept[graph.kept_reasons.get(name, NO_NODE)] += sizes[name]
    return Coverage(
        **dataclasses.asdict(candidate),
        status="error" if faults else "ok",
        error=f"unusable values for {', '.join(faults[:3])} ({len(faults)} in all)" if faults else "",
        mode=graph.mode,
        auto_mode=auto_mode,
        elements=sum(sizes.values()),
        covered_elements=sum(sizes[name] for name in covered),
        tensors=len(sizes),
        covered_tensors=len(covered),
        nodes=len(graph),
        is_valid=not faults,
        seconds=_rounded_since(started),
        kept=dict(kept.most_common()),
    )


def _traced(built: Built, ghn: Any, mode: Mode) -> ComputationalGraph:
    return trace(
        built.module,
        mode=mode,
        virtual_edge_cutoff=ghn.config.virtual_edge_cutoff,
        example_inputs=built.example_inputs,
    )


@torch.no_grad()
def _predicted(
    ghn: Any, graph: ComputationalGraph, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[set[str], list[str]]:
    """Names of the predicted tensors, and of those among them with a wrong shape or a value that is not finite."""
    offered = [name for name in dict.fromkeys(graph.parameter_names) if name in shapes]
    covered, faults = set(), []
    for group in _groups(offered, shapes):
        values = ghn.predict(graph, shapes, names=set(group), generator=torch.Generator().manual_seed(0))
        covered |= values.keys()
        faults += [name for name, value in values.items() if not _is_usable(value, shapes[name])]
    return covered, faults


def _groups(names: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Cut a list of tensors where `GROUP_ELEMENTS` would be exceeded; a larger tensor is a group of its own."""
    group: list[str] = []
    num_elements = 0
    for name in names:
        size = torch.Size(shapes[name]).numel()
        if group and num_elements + size > GROUP_ELEMENTS:
            yield group
            group, num_elements = [], 0
        group.append(name)
        num_elements += size
    if group:
        yield group


def _is_usable(value: Tensor, shape: tuple[int, ...]) -> bool:
    if tuple(value.shape) != shape:
        return False
    if value.numel() == 0:
        return True
    return bool(torch.stack(torch.aminmax(value)).isfinite().all())  # NaN propagates into both bounds


def _rounded_since(started: float) -> float:
    return round(time.perf_counter() - started, 2)


# --- State of a sweep ------------------------------------------------------------------------------------------------


def read_state(path: Path, settings: Mapping[str, Any]) -> list[Coverage]:
    """Read the records of an earlier sweep; a last line that an interrupt cut off is dropped.

    Args:
        path: JSON lines: the settings, then a record each.
        settings: What the records depend on.

    Returns:
        The records; none where there is no file.

    Raises:
        ParamInitError: The file is no such state, or was made with other settings.
    """
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        lines = text[: text.rfind("\n") + 1].splitlines()
        found = json.loads(lines[0])["settings"]
        records = [Coverage(**json.loads(line)) for line in lines[1:]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ParamInitError(
            f"Could not resume from {path}: it is no state of a coverage sweep ({type(error).__name__}: {error}). Move "
            "it away, or name another folder with --output."
        ) from error
    differences = [
        f"{name} was {found.get(name)!r}, is {settings.get(name)!r}"
        for name in sorted({*found, *settings})
        if found.get(name) != settings.get(name)
    ]
    if differences:
        raise ParamInitError(
            f"{path} holds a sweep with other settings: {'; '.join(differences)}. Name another folder with --output, "
            "or delete that file to start anew."
        )
    return records


def _write_state(path: Path, settings: Mapping[str, Any], records: Iterable[Coverage]) -> None:
    with atomic_write(path) as temporary:
        lines = [json.dumps({"settings": dict(settings)}), *map(_line, records)]
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _line(record: Coverage) -> str:
    defaults = {field.name: field.default for field in dataclasses.fields(Coverage)}
    values = dataclasses.asdict(record)
    return json.dumps({name: value for name, value in values.items() if value != defaults[name] and value != {}})


# --- Sweep -----------------------------------------------------------------------------------------------------------


def sweep(
    candidates: Sequence[Candidate],
    build: Build,
    *,
    init: Any,
    mode: Mode,
    settings: Mapping[str, Any],
    state: Path,
    jobs: int = 1,
    retry_failed: bool = False,
) -> Iterator[Coverage]:
    """Measure models in parallel processes of one thread each, and write each record to disk as it comes.

    A process that dies costs its own model only; an interrupt costs the models under way.

    Args:
        candidates: What to measure; models in `state` are skipped.
        build: Makes a model; a function that other processes can import.
        init: Name of a graph hypernetwork.
        mode: Kind of graph.
        settings: What the records depend on, for the head of `state`.
        state: JSON-lines file, read first and then added to.
        jobs: Processes.
        retry_failed: Whether models whose record is an error are measured again.

    Yields:
        New records, in the order in which they were finished.

    Raises:
        OutputError: `state` cannot be written.
        ParamInitError: `state` is something else, or belongs to a sweep with other settings.
    """
    finished = [record for record in read_state(state, settings) if record.status == "ok" or not retry_failed]
    _write_state(state, settings, finished)
    done = {record.candidate for record in finished}
    waiting = deque(candidate for candidate in candidates if candidate not in done)
    try:
        with state.open("a", encoding="utf-8") as file:
            for record in _measured(waiting, jobs, _Work(build, init, mode)):
                file.write(f"{_line(record)}\n")
                file.flush()
                yield record
    except OSError as error:
        raise OutputError(
            f"Could not write to {state}: {error.strerror or error}. Free some space and resume."
        ) from error


@dataclass(frozen=True)
class _Work:
    """`measure` with all but the candidate; other processes can import it."""

    build: Build
    init: Any
    mode: Mode

    def __call__(self, candidate: Candidate) -> Coverage:
        return measure(candidate, self.build, init=self.init, mode=self.mode)


def _measured(waiting: deque[Candidate], jobs: int, work: _Work) -> Iterator[Coverage]:
    """Measure all, whatever dies: models that were under way then are tried once more, each alone."""
    while waiting:
        suspects = yield from _measured_by_pool(waiting, jobs, work)
        for suspect in suspects:
            if (yield from _measured_by_pool(deque([suspect]), 1, work)):
                yield Coverage.failed(suspect, DIED)


def _measured_by_pool(waiting: deque[Candidate], jobs: int, work: _Work) -> Generator[Coverage, None, list[Candidate]]:
    """Measure until nothing waits or a process dies, and return the models that were under way then."""
    running: dict[Future[Coverage], Candidate] = {}
    context = multiprocessing.get_context("spawn")  # forking a process that has run torch may hang
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker) as executor:
        while waiting or running:
            # Never more than can run at once, so that a death has few suspects.
            while waiting and len(running) < jobs:
                candidate = waiting.popleft()
                try:
                    running[executor.submit(work, candidate)] = candidate
                except BrokenProcessPool:
                    return [candidate, *running.values()]
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                try:
                    record = future.result()
                except BrokenProcessPool:
                    return list(running.values())
                del running[future]
                yield record
    return []


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """Leave no process behind a parent that was killed: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

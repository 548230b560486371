"""Generates splits of DeepNets-1M and writes them in the published format (arXiv 2110.13100, appendix A).

Networks are drawn one by one, each from a random stream of its own, so any number of processes makes the same files:
workers of this machine, or those that a launcher started, on any number of machines with one file system. A finished
chunk of networks is a small file beside the result; what a killed run has finished is not drawn again. The
published generator lists nodes by cell but distances by position, which agree in no current version of networkx; here
both follow the order of computation.
"""

from __future__ import annotations

import functools
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_paraminit.deepnets.dataset import (
    TITLE,
    WRITER,
    DatasetError,
    import_h5py,
    metadata_path,
    open_hdf5,
    read_metadata,
)
from hf_paraminit.deepnets.splits import Split, draw_record, find_split
from hf_paraminit.deepnets.stored_graph import stored_name
from hf_paraminit.deepnets.wiring import WiredNode, Wiring
from hf_paraminit.errors import OutputError
from hf_paraminit.graphs.primitives import PRIMITIVES
from hf_paraminit.graphs.virtual_edges import shortest_path_lengths
from hf_paraminit.io.atomic import atomic_write
from hf_paraminit.io.exclusive import exclusive
from hf_paraminit.training.processes import (
    in_workers,
    is_main_process,
    process_count,
    process_index,
    wait_for_everyone,
)

if TYPE_CHECKING:
    import h5py

FORMAT_VERSION = 1  # of what a seed gives; raise it when the draws change
STORED_CUTOFF = 250  # hops; longer paths count as none
CHUNK_SIZE = 250
COMPRESSION = {"compression": "gzip", "compression_opts": 1}  # any reader of HDF5 knows it; level 1 is fastest
LIBRARY_VERSION = "v110"  # HDF5 of 2016 or later; older layouts spend 6 kB per network on indices of single blocks

_NO_WEIGHT = frozenset({"input", "sum", "concat", "msa", "cse", "max_pool", "avg_pool", "glob_avg"})
_OPERATION_PARTS = (
    *(f"op.{position}.weight" for position in range(1, 8)),
    "conv_1.weight",
    "conv_2.weight",
    "bn.weight",
    *(f"{layer}.{kind}" for layer in ("fc1", "fc2", "to_out.0", "ff.net.0", "ff.net.3") for kind in ("weight", "bias")),
    *(f"{layer}.weight" for layer in ("to_qkv", "ln1", "ln2")),
)


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What decides the contents of a generated split.

    Attributes:
        split: Name of the split.
        num_networks: Networks to generate.
        seed: Of the networks.
    """

    split: str
    num_networks: int
    seed: int

    @property
    def settings(self) -> dict[str, Any]:
        """What finished parts must have in common; the number of networks may grow."""
        return {"split": self.split, "seed": self.seed, "format_version": FORMAT_VERSION}


def generate(
    split: str,
    folder: str | os.PathLike[str],
    *,
    num_networks: int | None = None,
    seed: int | None = None,
    processes: int = 1,
    chunk_size: int = CHUNK_SIZE,
) -> Path:
    """Generate one split, or go on where an interrupted run was. Under a launcher, its processes share the work.

    Args:
        split: Name of the split.
        folder: Where to put deepnets1m_train, deepnets1m_search or, for all others, deepnets1m_eval (.hdf5 and
            _meta.json); other splits that are there already stay.
        num_networks: Networks; by default as many as published.
        seed: Of the networks; by default that of the split.
        processes: Worker processes of this machine; under a launcher, of each of its processes.
        chunk_size: Networks that are generated and kept at a time.

    Returns:
        The HDF5 file.

    Raises:
        MissingDependencyError: h5py is not installed, or joblib where several processes are asked for.
        OutputError: The folder cannot be written, another run writes to it, or it holds the result of another seed or
            size. What was finished is kept.
        DatasetError: A file that is there already is damaged.
    """
    import_h5py()
    description = find_split(split)
    generation = Generation(
        split=split,
        num_networks=description.num_networks if num_networks is None else num_networks,
        seed=description.seed if seed is None else seed,
    )
    target = Path(folder) / f"deepnets1m_{description.file}.hdf5"
    is_main = is_main_process()
    lock = exclusive(target, target.with_name(f".{target.name}.lock")) if is_main else nullcontext()
    with lock:
        if not _is_finished(target, generation):
            parts = target.with_name(f"deepnets1m_{split}.parts")
            if is_main:
                _prepare(parts, generation)
            wait_for_everyone()
            _generate_parts(generation, parts, processes=processes, chunk_size=chunk_size)
            wait_for_everyone()
            if is_main:
                _merge(generation, parts, target)
                shutil.rmtree(parts, ignore_errors=True)
            wait_for_everyone()
    return target


# --- One network -----------------------------------------------------------------------------------------------------


@lru_cache
def name_tables(max_steps: int) -> tuple[dict[str, int], dict[str, int]]:
    """Return the numbers of all primitives and of all names that networks with such cells can have.

    The tables depend on nothing else, so that parts made by different processes agree.
    """
    primitives = [*PRIMITIVES, "conv_1x1"]
    names = [*sorted(_NO_WEIGHT), "pos_enc.weight"]
    names += [f"stem0.{position}.weight" for position in (0, 1, 3, 4)] + ["stem0.weight"]
    names += [f"stem.{position}.weight" for position in (0, 1)] + [f"stem1.{position}.weight" for position in (1, 2)]
    names += [f"classifier.{position}.{kind}" for position in (0, 3, 6) for kind in ("weight", "bias")]
    adapting = ("op.1.weight", "op.2.weight", "conv_1.weight", "conv_2.weight", "bn.weight")
    names += [f"preprocess{which}.{part}" for which in (0, 1) for part in adapting]
    names += [f"_ops.{position}.{part}" for position in range(2 * max_steps) for part in _OPERATION_PARTS]
    return tuple({name: number for number, name in enumerate(table)} for table in (primitives, names))  # type: ignore[return-value]


def node_rows(wiring: Wiring, max_steps: int) -> NDArray[np.uint16]:
    """Return the (N, 3) rows of primitive, cell and name."""
    primitives, names = name_tables(max_steps)
    rows = [(primitives[_stored_primitive(node)], node.cell, names[stored_name(node.name)]) for node in wiring.nodes]
    return np.array(rows, dtype=np.uint16)


def path_lengths(wiring: Wiring) -> NDArray[np.uint8]:
    """Return the (N, N) path lengths in hops, 0 for none and for more than 250."""
    edges = torch.tensor(wiring.edges, dtype=torch.int64).reshape(-1, 2)
    return shortest_path_lengths(edges, len(wiring.nodes), STORED_CUTOFF).numpy().astype(np.uint8)


def _stored_primitive(node: WiredNode) -> str:
    is_pointwise = node.primitive == "conv" and node.shape is not None and set(node.shape[2:]) <= {1}
    return "conv_1x1" if is_pointwise else node.primitive


# --- Chunks ----------------------------------------------------------------------------------------------------------


def _generate_parts(generation: Generation, parts: Path, *, processes: int, chunk_size: int) -> None:
    """Make a file of each chunk that has none; under a launcher, of every n-th of them."""
    pending = _pending(parts, generation.num_networks, processes=processes * process_count(), chunk_size=chunk_size)
    wait_for_everyone()  # before the first new file appears, or not all would see the same chunks
    own = pending[process_index() :: process_count()]
    total = generation.num_networks if process_count() == 1 else sum(map(len, own))
    initial = total - sum(map(len, own))
    title, is_silent = generation.split, not is_main_process()
    with tqdm(total=total, initial=initial, desc=title, unit="network", disable=is_silent) as bar:
        for count in _run(generation, parts, own, processes):
            bar.update(count)


def _pending(parts: Path, total: int, *, processes: int, chunk_size: int) -> list[range]:
    """Chunks that are not there, short enough for every process to get one."""
    gaps = list(_gaps(_finished(parts), total))
    size = max(1, min(chunk_size, -(-sum(map(len, gaps)) // processes)))
    return [range(start, min(start + size, gap.stop)) for gap in gaps for start in range(gap.start, gap.stop, size)]


def _run(generation: Generation, parts: Path, pending: Sequence[range], processes: int) -> Iterator[int]:
    if processes == 1 or len(pending) < 2:
        yield from (_generate_part(generation, parts, chunk) for chunk in pending)
        return
    yield from in_workers(functools.partial(_generate_part, generation, parts), pending, processes)


def _generate_part(generation: Generation, parts: Path, chunk: range) -> int:
    """Draw the networks of a chunk and keep them; return how many."""
    split = find_split(generation.split)
    records = []
    # In memory, since a part is small, and so that what goes wrong while it is written is said by the system itself.
    with _new_file("part", driver="core", backing_store=False) as file:
        for index in chunk:
            record, wiring = draw_record(split, index, seed=generation.seed)
            _add_network(file, str(index), wiring, split)
            records.append(json.dumps(record))
        file.create_dataset("records", data=records)
        file.flush()
        image = file.id.get_file_image()
    with atomic_write(parts / f"{chunk.start:09d}-{chunk.stop:09d}.hdf5") as path:
        path.write_bytes(image)
    return len(chunk)


def _add_network(file: h5py.Group, name: str, wiring: Wiring, split: Split) -> None:
    group = file.create_group(name)
    for key, array in (("adj", path_lengths(wiring)), ("nodes", node_rows(wiring, split.space.max_steps))):
        group.create_dataset(key, data=array, chunks=array.shape, **COMPRESSION)


def _prepare(parts: Path, generation: Generation) -> None:
    """Make the folder of the parts, or check that those that are there belong to this run."""
    file = parts / "settings.json"
    if file.exists():
        try:
            found = json.loads(file.read_bytes())
        except ValueError:
            found = None
        if found != generation.settings:
            raise OutputError(
                f"{parts} holds an unfinished run with other settings: expected {generation.settings}, found {found}. "
                "Finish that run, choose another folder, or delete this one."
            )
        return
    for _, stray in _finished(parts):  # a worker that outlived its killed run left it, maybe with other settings
        stray.unlink()
    with atomic_write(file) as path:
        path.write_text(json.dumps(generation.settings))


def _finished(parts: Path) -> list[tuple[range, Path]]:
    """Chunks that are there, by their first network."""
    found = []
    for path in sorted(parts.glob("*.hdf5")):
        if (match := re.fullmatch(r"(\d+)-(\d+)", path.stem)) is not None:
            found.append((range(int(match[1]), int(match[2])), path))
    return found


def _gaps(finished: Iterable[tuple[range, Path]], total: int) -> Iterator[range]:
    """Ranges of networks below `total` that no chunk covers."""
    start = 0
    for chunk, _ in finished:
        if start < min(chunk.start, total):
            yield range(start, min(chunk.start, total))
        start = max(start, chunk.stop)
    if start < total:
        yield range(start, total)


# --- Result ----------------------------------------------------------------------------------------------------------


def _is_finished(target: Path, generation: Generation) -> bool:
    """Whether the file holds this split as asked for.

    Raises:
        OutputError: It holds another version of it.
        DatasetError: Other splits in it would be lost, since nothing describes them.
    """
    if not target.exists():
        return False
    described = _described(target)
    with open_hdf5(target) as file:
        lost = set(file) - set(described) - {generation.split}
        if lost:
            raise DatasetError(
                f"{target} holds {', '.join(sorted(lost))}, but {metadata_path(target).name} does not describe them. "
                "Restore that file, choose another folder, or move the HDF5 file away."
            )
        if generation.split not in file:
            return False
        group = file[generation.split]
        found = (len(group), group.attrs.get(WRITER))
    if generation.split not in described and found[1] is not None:
        return False  # a run was killed between the two files
    if found == (generation.num_networks, json.dumps(generation.settings)):
        return True
    raise OutputError(
        f"{target} already holds {found[0]} networks of {generation.split!r} made with other settings ({found[1]}), "
        f"expected {generation.num_networks} with {generation.settings}. Choose another folder, or move that file away."
    )


def _described(target: Path) -> dict[str, Any]:
    """Entries of the JSON file, by split."""
    return read_metadata(target) if target.exists() and metadata_path(target).exists() else {}


def _merge(generation: Generation, parts: Path, target: Path) -> None:
    """Join the parts, and the other splits that the target has, into the two files."""
    finished = _finished(parts)
    others = _described(target)
    others.pop(generation.split, None)
    with atomic_write(target) as path, _as_os_error(), _new_file(path) as file:
        file.attrs["title"] = TITLE
        if others:
            with open_hdf5(target) as before:
                for name in others:
                    before.copy(before[name], file, name=name)
        group = file.create_group(generation.split)
        group.attrs[WRITER] = json.dumps(generation.settings)
        for chunk, part in finished:
            with open_hdf5(part) as source:
                for index in _within(chunk, generation.num_networks):
                    source.copy(str(index), group)
    with atomic_write(metadata_path(target)) as path, path.open("w") as stream:
        stream.write("{")
        for name, content in others.items():
            stream.write(f"{json.dumps(name)}: {json.dumps(content)},\n")
        _write_metadata(stream, generation, finished)
        stream.write("}\n")


def _write_metadata(stream: io.TextIOBase | Any, generation: Generation, finished: list[tuple[range, Path]]) -> None:
    """Write the entry of the split, one network per line, without holding all of them in memory."""
    tables = name_tables(find_split(generation.split).space.max_steps)
    named = {
        key: {str(number): name for name, number in table.items()}
        for key, table in zip(("primitives_ext", "unique_op_names"), tables, strict=True)
    }
    stream.write(f'{json.dumps(generation.split)}: {{"meta": {json.dumps(named)},\n"nets": [\n')
    for chunk, part in finished:
        with open_hdf5(part) as source:
            records = source["records"].asstr()[:]
        for index in _within(chunk, generation.num_networks):
            stream.write((",\n" if index else "") + records[index - chunk.start])
    stream.write("]}")


def _new_file(path: str | Path, **options: Any) -> h5py.File:
    return import_h5py().File(path, "w", libver=LIBRARY_VERSION, **options)


def _within(chunk: range, total: int) -> range:
    return range(chunk.start, min(chunk.stop, total))


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Let a full disk look like one: h5py gives the system's code in the text of several kinds of exceptions only."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        code = re.search(r"errno = (\d+)", f"{error} {error.__context__}")
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error

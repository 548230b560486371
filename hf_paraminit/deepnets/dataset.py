"""The files of DeepNets-1M (arXiv 2110.13100): graphs in HDF5, and descriptions in JSON beside it.

One HDF5 group per split holds a group per network, named by its number, with two arrays: `adj`, (N, N) uint8 path
lengths (row = source), and `nodes`, (N, 3) uint16 rows of primitive, cell and name. The JSON file holds, by split, the
records of the networks and the tables that these numbers refer to.

Axes: N nodes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_paraminit.deepnets.described import VIRTUAL_EDGE_CUTOFF, DescribedNetworks
from hf_paraminit.deepnets.genotype import ArchitectureError, Genotype
from hf_paraminit.deepnets.network import DeepNetsNetwork
from hf_paraminit.deepnets.sources import checked_index
from hf_paraminit.deepnets.splits import IMAGE_SIZES, STRUCTURE_KEYS, Record, find_split
from hf_paraminit.deepnets.stored_graph import has_two_stems, one_hop_edges, repair_wiring, stored_node
from hf_paraminit.deepnets.wiring import wire
from hf_paraminit.errors import MissingDependencyError, ParamInitError
from hf_paraminit.graphs.graph import ComputationalGraph, Node
from hf_paraminit.graphs.virtual_edges import shortest_path_lengths

if TYPE_CHECKING:
    import h5py

TITLE = "DeepNets-1M"
# Attribute of a split's group in files of this package, whose wiring needs no repair.
WRITER = "hf_paraminit"
# MD5 of the published files.
PUBLISHED = {
    "deepnets1m_eval.hdf5": "1f5641329271583ad068f43e1521517e",
    "deepnets1m_train.hdf5": "90bbe84bb1da0d76cdc06d5ff84fa23d",
    "deepnets1m_search.hdf5": "0a93f4b4e3b729ea71eb383f78ea9b53",
}
# What a record must say of a network; yes and no are stored as true and false or as 1 and 0.
_RECORD_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(STRUCTURE_KEYS, int),
    "norm": (str, type(None)),
    "genotype": dict,
    "fc_dim": int,
    "num_nodes": int,
    "num_params": dict,
}


class DatasetError(ParamInitError, ValueError):
    """A DeepNets-1M file that is damaged or incomplete, or whose parts contradict each other."""


def import_h5py() -> Any:
    """Import h5py.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError(
            'DeepNets-1M files need h5py, which is not installed: pip install "hf_paraminit[deepnets]".'
        ) from error
    return h5py


def metadata_path(path: Path) -> Path:
    """Return the JSON file that belongs to an HDF5 file."""
    return path.with_name(f"{path.stem}_meta.json")


def find_file(split: str, place: str | os.PathLike[str]) -> Path:
    """Return the file of a split in a folder; a file is taken as it is.

    Raises:
        DatasetError: The folder has none.
    """
    place = Path(place)
    if not place.is_dir():
        return place
    names = [f"deepnets1m_{part}.hdf5" for part in dict.fromkeys((find_split(split).file, split))]
    found = next((place / name for name in names if (place / name).exists()), None)
    if found is None:
        raise DatasetError(
            f"{place} has no file of the split {split!r}: expected {' or '.join(names)}. Put the published file there, "
            f"or make one: paraminit deepnets generate {split} --output {place}"
        )
    return found


class StoredNetworks(DescribedNetworks):
    """The networks of one split of a DeepNets-1M file, published or of this package.

    Args:
        path: The HDF5 file, or the folder that it lies in; the JSON file is expected beside it.
        split: Name of the split.
        repair: Undo the two wiring defects of the published graphs; by default in all files but this package's own.
        **options: Those of `described.DescribedNetworks`.

    Raises:
        MissingDependencyError: h5py is not installed.
        DatasetError: A file is missing, damaged or empty, has no such split, or the two contradict each other.
    """

    def __init__(
        self, path: str | os.PathLike[str], split: str = "train", *, repair: bool | None = None, **options: Any
    ) -> None:
        super().__init__(split, **options)
        self.path = find_file(split, path)
        metadata = read_metadata(self.path)
        if split not in metadata:
            raise DatasetError(f"{metadata_path(self.path)} has no split {split!r}; it has {', '.join(metadata)}.")
        self._records: list[Record] = metadata[split]["nets"]
        self._primitives, self._names = (
            _table(metadata[split], key, self.path) for key in ("primitives_ext", "unique_op_names")
        )
        self._opened: tuple[int, h5py.File] | None = None
        group = self._group()
        if len(group) != len(self._records):
            raise DatasetError(
                f"{self.path} has {len(group)} graphs in {split!r}, but {metadata_path(self.path).name} describes "
                f"{len(self._records)} networks. Take both files from one place."
            )
        self.repair = WRITER not in group.attrs if repair is None else repair

    def __len__(self) -> int:
        return len(self._records)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}  # another process opens the file for itself

    def record(self, index: int) -> Record:
        """Return the description of a network.

        Raises:
            DatasetError: It lacks something, or no network can be built from it.
        """
        index = checked_index(index, len(self))
        record = self._records[index]
        faults = list(_faults(record, needs_width=self.split.has_stored_width))
        if faults:
            raise self._error(index, f"its description lacks {', '.join(faults)}")
        genotype = self._genotype(index, record)
        if not genotype.is_connected(record["n_cells"]):
            raise self._error(
                index, "the 'none' operations of its genotype cut every path from the image to the classifier"
            )
        return record

    def __getitem__(self, index: int) -> DeepNetsNetwork:
        """Build a network."""
        try:
            return super().__getitem__(index)
        except ArchitectureError as error:
            raise self._error(index, str(error)) from error

    def graph(self, index: int, virtual_edge_cutoff: int = VIRTUAL_EDGE_CUTOFF) -> ComputationalGraph:
        """Read the graph of a network.

        Args:
            index: Its number.
            virtual_edge_cutoff: Longest path that counts, in hops; 1 for no virtual edges.

        Raises:
            DatasetError: The stored graph is damaged, or does not belong to the description.
        """
        index = checked_index(index, len(self))
        record = self.record(index)
        adjacency, rows = self._arrays(index)
        if len(rows) != record["num_nodes"]:
            raise self._error(index, f"its graph has {len(rows)} nodes, but its description says {record['num_nodes']}")
        nodes = self._nodes(index, rows)
        self._check_names(index, nodes)
        distances = adjacency.astype(np.int64)
        is_repaired = self.repair and repair_wiring(distances, nodes, has_two_stems=has_two_stems(record))
        edges, num_nodes = one_hop_edges(distances), len(nodes)
        if is_repaired:
            lengths = shortest_path_lengths(edges, num_nodes, virtual_edge_cutoff)
        else:
            lengths = torch.from_numpy(np.where(distances > virtual_edge_cutoff, 0, distances))
        return ComputationalGraph(
            nodes=nodes,
            edges=edges,
            distances=lengths,
            input_index=0,
            class_weight_index=num_nodes - 2,
            class_bias_index=num_nodes - 1,
            num_cells=record["n_cells"],
            input_size=(3, *[224 if self.is_imagenet_input else 32] * 2),
            virtual_edge_cutoff=virtual_edge_cutoff,
        )

    def check(self, index: int) -> None:
        """Build a network and read its graph.

        Raises:
            DatasetError: One of them is damaged, or they do not belong together.
        """
        self[index]
        self.graph(index)

    def _check_names(self, index: int, nodes: tuple[Node, ...]) -> None:
        """Raise `DatasetError` if the graph names parameters that the described network does not use."""
        try:
            described = wire(self.arguments(index)).to_nodes()
        except ArchitectureError as error:
            raise self._error(index, str(error)) from error
        known = {name for node in described for name in node.parameters}
        unknown = [name for node in nodes for name in node.parameters if name not in known]
        if unknown:
            raise self._error(
                index,
                f"its graph has nodes for {len(unknown)} parameters that the described network lacks, the first is "
                f"{unknown[0]!r}",
            )

    def _genotype(self, index: int, record: Record) -> Genotype:
        try:
            return Genotype.from_dict(record["genotype"])
        except (ArchitectureError, TypeError) as error:
            raise self._error(index, str(error)) from error

    def _group(self) -> h5py.Group:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), open_hdf5(self.path)
        file = self._opened[1]
        if self.split.name not in file:
            raise DatasetError(f"{self.path} has no split {self.split.name!r}; it has {', '.join(file) or 'none'}.")
        return file[self.split.name]

    def _arrays(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        with _reading(self.path):
            group = self._group()
            if str(index) not in group:
                raise self._error(index, "the file has no graph of this number")
            stored = group[str(index)]
            if not {"adj", "nodes"} <= set(stored):
                raise self._error(index, f"expected the arrays adj and nodes, found {', '.join(stored) or 'none'}")
            adjacency, rows = stored["adj"][:], stored["nodes"][:]
        num_nodes = len(rows)
        if rows.shape != (num_nodes, 3) or adjacency.shape != (num_nodes, num_nodes) or num_nodes < 3:
            raise self._error(
                index, f"expected adj (N, N) and nodes (N, 3), found {tuple(adjacency.shape)} and {tuple(rows.shape)}"
            )
        if np.tril(adjacency).any():
            raise self._error(index, "some edge does not run from an earlier to a later node")
        return adjacency, rows

    def _nodes(self, index: int, rows: NDArray[np.uint16]) -> tuple[Node, ...]:
        try:
            nodes = tuple(
                stored_node(self._primitives[primitive], int(cell), self._names[name])
                for primitive, cell, name in rows.tolist()
            )
        except KeyError as error:
            raise self._error(index, f"number {error} is not in the tables of the JSON file") from error
        except ValueError as error:
            raise self._error(index, str(error)) from error
        if nodes[0].primitive != "input":
            raise self._error(index, f"its first node must be the input; found {nodes[0].primitive!r}")
        return nodes

    def _error(self, index: int, problem: str) -> DatasetError:
        return DatasetError(
            f"Network {index} of {self.split.name!r} in {self.path} cannot be used: {problem}. The file is damaged, or "
            f"{metadata_path(self.path).name} belongs to another one."
        )


def is_published(path: Path) -> bool:
    """Return whether a file is the published one of its name, byte for byte."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest() == PUBLISHED.get(path.name)


# --- Files -----------------------------------------------------------------------------------------------------------


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading.

    Raises:
        DatasetError: It is missing or damaged.
    """
    h5py = import_h5py()
    if not path.is_file():
        raise DatasetError(f"There is no file {path}.")
    with _reading(path):
        return h5py.File(path, "r")


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the JSON file that belongs to an HDF5 file, by split.

    Raises:
        DatasetError: It is missing, damaged or not of this format.
    """
    file = metadata_path(path)
    try:
        metadata = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise DatasetError(
            f"{path.name} needs {file.name} in the same folder ({file.parent}); it is missing."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{file} cannot be read as JSON: {error}. Get or generate it anew.") from error
    if not isinstance(metadata, dict) or not metadata:
        raise DatasetError(f"{file} holds no splits: expected an object with one entry for each.")
    for split, content in metadata.items():
        is_known = isinstance(content, dict) and isinstance(content.get("nets"), list)
        if not is_known or not isinstance(content.get("meta"), dict):
            raise DatasetError(f"{file}: split {split!r} must have a list 'nets' and an object 'meta'.")
        if not content["nets"]:
            raise DatasetError(f"{file}: split {split!r} holds no networks.")
    return metadata


def _table(content: Mapping[str, Any], key: str, path: Path) -> dict[int, str]:
    try:
        return {int(number): str(name) for number, name in content["meta"][key].items()}
    except (KeyError, AttributeError, ValueError) as error:
        raise DatasetError(f"{metadata_path(path)} has no usable table {key!r}.") from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what h5py says of a damaged file into a `DatasetError`."""
    try:
        yield
    except ParamInitError:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path} cannot be read: {error}. The file is damaged or incomplete; get or generate it anew."
        ) from error


def _faults(record: Any, *, needs_width: bool) -> Iterator[str]:
    """Yield what a record does not say."""
    if not isinstance(record, dict):
        yield "everything"
        return
    for key, kind in (_RECORD_TYPES | ({"C": int} if needs_width else {})).items():
        if key not in record or not isinstance(record[key], kind):
            yield f"a usable {key!r}"
    counts = record.get("num_params")
    if isinstance(counts, dict) and not all(isinstance(counts.get(size), int) for size in IMAGE_SIZES):
        yield f"'num_params' for {' and '.join(IMAGE_SIZES)}"

"""Describe the splits of DeepNets-1M, or those of a file: how many networks, how large, made of what.

`--check` builds every network, compares it with its stored graph, and says whether the file is the published one.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm.auto import tqdm

from hf_paraminit.cli.arguments import Subparsers, add_json_switch, verb_parser
from hf_paraminit.cli.table import table
from hf_paraminit.deepnets.dataset import DatasetError, StoredNetworks, is_published, read_metadata
from hf_paraminit.deepnets.splits import SPLITS, Split

EXAMPLES = """
paraminit deepnets info
paraminit deepnets info data
paraminit deepnets info data/deepnets1m_eval.hdf5 --check
"""


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "info", __doc__, examples=EXAMPLES)
    parser.add_argument(
        "path", nargs="?", type=Path, metavar="PATH", help="HDF5 file, or folder of such files (default: none)"
    )
    parser.add_argument("--check", action="store_true", help="check every network and whether the file is as published")
    add_json_switch(parser)


def run(arguments: argparse.Namespace) -> None:
    if arguments.path is None:
        records = [_published(split) for split in SPLITS.values()]
    else:
        records = [
            _stored(StoredNetworks(file, split), check=arguments.check)
            for file in _files(arguments.path)
            for split in read_metadata(file)
        ]
    if arguments.json:
        print(json.dumps(records, indent=2))
        return
    for record in records:
        record.pop("operations", None)  # too long for a table
    print(table(list(records[0]), [[_text(value) for value in record.values()] for record in records]))


def _files(path: Path) -> list[Path]:
    """The file itself, or all of a folder.

    Raises:
        DatasetError: The folder has none.
    """
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("deepnets1m_*.hdf5"))
    if not files:
        raise DatasetError(
            f"{path} holds no DeepNets-1M file (deepnets1m_*.hdf5). Make one: paraminit deepnets generate val "
            f"--output {path}"
        )
    return files


def _published(split: Split) -> dict[str, Any]:
    space = split.space
    return {
        "split": split.name,
        "file": f"deepnets1m_{split.file}.hdf5",
        "networks": split.num_networks,
        "cells": [space.min_cells, space.max_cells],
        "steps": [space.min_steps, space.max_steps],
        "steps of deep networks": [space.min_steps, space.max_steps_deep],
        "most parameters": space.max_parameters,
        "seed": split.seed,
    }


def _stored(networks: StoredNetworks, *, check: bool) -> dict[str, Any]:
    name = networks.split.name
    records = [networks.record(index) for index in range(len(networks))]
    if check:
        for index in tqdm(range(len(networks)), desc=f"check {name}", unit="network"):
            networks.check(index)
    operations = Counter(
        operation for record in records for cell in ("normal", "reduce") for operation, _ in record["genotype"][cell]
    )
    nodes = [record["num_nodes"] for record in records]
    parameters = [record["num_params"]["cifar10"] / 1e6 for record in records]
    cells = [record["n_cells"] for record in records]
    return {
        "split": name,
        "file": networks.path.name,
        "networks": len(records),
        "cells": [min(cells), max(cells)],
        "nodes": [min(nodes), max(nodes)],
        "mean nodes": round(fmean(nodes), 1),
        "million parameters": [round(min(parameters), 3), round(max(parameters), 3)],
        "mean": round(fmean(parameters), 3),
        "with attention": sum(_has_attention(record) for record in records),
        "without norm": sum(record["norm"] is None for record in records),
        "checked": check,
        "published": is_published(networks.path) if check else None,
        "operations": dict(operations.most_common()),
    }


def _has_attention(record: dict[str, Any]) -> bool:
    return any(operation == "msa" for cell in ("normal", "reduce") for operation, _ in record["genotype"][cell])


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(map(str, value))
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "-"}[value]
    return str(value)

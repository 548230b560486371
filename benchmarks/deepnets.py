"""How many networks of DeepNets-1M one core generates and writes per second, and what a training step pays for one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import Record, interleaved, parser, prepare, report, save, verdict
from hf_paraminit.deepnets.dataset import StoredNetworks
from hf_paraminit.deepnets.described import GeneratedNetworks
from hf_paraminit.deepnets.generator import generate
from hf_paraminit.deepnets.splits import SPLITS
from hf_paraminit.graphs.trace import trace

LEAST_PER_SECOND = 20.0  # per core, generated and written
QUICK_SPLITS = ("train",)


def time_split(split: str, num_networks: int) -> Record:
    """Generate and write networks in this process; CPU time counts, so other programs do not."""
    with tempfile.TemporaryDirectory() as folder:
        elapsed, used = time.perf_counter(), time.process_time()
        file = generate(split, folder, num_networks=num_networks)
        elapsed, used = time.perf_counter() - elapsed, time.process_time() - used
        networks = StoredNetworks(file, split)
        nodes = [networks.record(index)["num_nodes"] for index in range(num_networks)]
        size = file.stat().st_size + Path(f"{file.with_suffix('')}_meta.json").stat().st_size
    per_second = num_networks / used
    return {
        "model": split,
        "networks": num_networks,
        "mean nodes": sum(nodes) / num_networks,
        "networks / CPU s": per_second,
        "networks / s": num_networks / elapsed,
        "kB / network": size / num_networks / 1e3,
        "target": f">= {LEAST_PER_SECOND:g}",
        "result": verdict(is_met=per_second >= LEAST_PER_SECOND),
    }


def time_access(num_networks: int, *, repeats: int) -> Record:
    """Compare the ways to the graph of a training network, and building its modules."""
    source = GeneratedNetworks("train")
    modules = [source[index] for index in range(num_networks)]
    with tempfile.TemporaryDirectory() as folder:
        stored = StoredNetworks(generate("train", folder, num_networks=num_networks), "train")
        ways: dict[str, Callable[[int], object]] = {
            "draw ms": source.record,
            "draw and lay out graph ms": source.graph,
            "read graph ms": stored.graph,
            "trace graph ms": lambda index: trace(modules[index]),
            "build modules ms": source.__getitem__,
        }
        functions = [lambda way=way: [way(index) for index in range(num_networks)] for way in ways.values()]
        seconds = interleaved(functions, repeats=repeats)
    return {"model": "train"} | {name: 1e3 * time_ / num_networks for name, time_ in zip(ways, seconds, strict=True)}


def main() -> None:
    """Run the benchmark."""
    options = parser("Generating DeepNets-1M, and access to its networks.")
    options.add_argument("--networks", type=int, default=500, help="networks per split (default: 500)")
    arguments = options.parse_args()
    prepare(arguments)
    num_networks = 3 if arguments.quick else arguments.networks
    splits = QUICK_SPLITS if arguments.quick else tuple(SPLITS)
    generation = [time_split(split, num_networks) for split in splits]
    report("Generated and written, one process", generation)
    access = [time_access(3 if arguments.quick else 30, repeats=arguments.repeats)]
    report(f"Access to a network, median of {arguments.repeats}", access)
    save(arguments, {"generation": generation, "access": access})


if __name__ == "__main__":
    main()

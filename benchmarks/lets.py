"""What `init="learngene-LeTs"` costs beside building the same model plainly: time and memory.

The learngene has the published size (384 x 8 to 768 x 16) and random weights. For the timings it is loaded before; the
memory of a process counts it.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from typing import Any

import timm
from torch import nn

import hf_paraminit
from benchmarks.measure import Record, interleaved, parser, prepare, report, save, verdict
from hf_paraminit.initializers.learngene_lets import LearngeneLeTs
from hf_paraminit.lets.config import LeTsConfig
from hf_paraminit.lets.generator import LeTsGenerator

_EXACT = {"class_token": False, "global_pool": "avg"}  # what the learngene was trained for
# Layers x width -> arguments of timm.create_model.
MODELS: dict[str, dict[str, Any]] = {
    "12 x 768, class token": {},
    "12 x 768": _EXACT,
    "16 x 768": {**_EXACT, "depth": 16},
    "8 x 768": {**_EXACT, "depth": 8},
    "10 x 448": {**_EXACT, "depth": 10, "embed_dim": 448, "num_heads": 7},
    "6 x 384": {**_EXACT, "depth": 6, "embed_dim": 384, "num_heads": 6},
}
QUICK_MODELS = ("6 x 384",)

MEMORY_PROGRAM = """
import sys, torch, timm, hf_paraminit
from benchmarks.lets import build
name, way, source, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
model = build(name, init=source) if way == "create" else build(name)
if way == "initialize":
    hf_paraminit.initialize(model, source)
# Unlike getrusage, the kernel's status file does not count the process that this one was started from.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def build(name: str, **arguments: Any) -> nn.Module:
    """Build a model by a name of `MODELS`."""
    return timm.create_model("deit_base_patch16_224", **MODELS[name], **arguments)


def time_model(name: str, init: LearngeneLeTs, *, repeats: int) -> Record:
    """Compare plain creation, creation with the initializer, and `initialize` on a ready model."""
    model = build(name)
    seconds: list[float] = []
    plain, total, alone = interleaved(
        [
            lambda: build(name),
            lambda: build(name, init=init),
            lambda: seconds.append(hf_paraminit.initialize(model, init).seconds["materialize"]),
        ],
        repeats=repeats,
    )
    return {
        "model": name,
        "params M": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        "plain s": plain,
        "materialize / plain": statistics.median(seconds[1:]) / plain,
        "initialize / plain": alone / plain,
        "create + init / plain": total / plain,
        "target": "<= 1.0x",
        "result": verdict(is_met=max(total, alone) <= plain),
    }


def measure_memory(name: str, folder: str, threads: int) -> Record:
    """Compare the peak memory of processes that make a model with one that only builds it plainly.

    Args:
        name: The model.
        folder: Where the learngene is stored.
        threads: CPU threads.
    """
    plain, initialized, created = (
        1024 * _peak(name, way, f"local-dir:{folder}", str(threads)) for way in ("plain", "initialize", "create")
    )
    model = sum(parameter.nbytes for parameter in build(name).parameters())
    learngene = sum(parameter.nbytes for parameter in LeTsGenerator.skeleton(LeTsConfig()).parameters())
    return {
        "model": name,
        "model MB": model / 1e6,
        "learngene MB": learngene / 1e6,
        "extra MB of initialize": (initialized - plain) / 1e6,
        "extra MB of creation with init=": (created - plain) / 1e6,
        "target": "each <= model, beyond the learngene",
        "result": verdict(is_met=max(initialized, created) - plain - learngene <= model),
    }


def _peak(*arguments: str) -> float:
    """Run the program in a process of its own; its peak memory in KiB."""
    command = [sys.executable, "-c", MEMORY_PROGRAM, *arguments]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    """Run the benchmark."""
    options = parser("Cost of init='learngene-LeTs' beside plain creation.")
    options.add_argument("models", nargs="*", help=f"some of: {'; '.join(MODELS)} (default: all)")
    options.add_argument("--only", choices=["time", "memory"], help="one of the two parts")
    arguments = options.parse_args()
    prepare(arguments)
    models = arguments.models or (QUICK_MODELS if arguments.quick else MODELS)
    generator = LeTsGenerator.new(LeTsConfig(), seed=0).requires_grad_(False)
    results: Record = {}
    if arguments.only != "memory":
        init = LearngeneLeTs(predictor=generator)
        results["time"] = [time_model(name, init, repeats=arguments.repeats) for name in models]
        report(f"Time, {arguments.threads} thread(s), median of {arguments.repeats}", results["time"])
    if arguments.only != "time":
        with tempfile.TemporaryDirectory() as folder:
            generator.save_pretrained(folder)
            results["memory"] = [measure_memory(name, folder, arguments.threads) for name in models]
        report("Peak memory", results["memory"])
    save(arguments, results)


if __name__ == "__main__":
    main()

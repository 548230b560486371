"""What `init="ghn3"` costs beside building the same model plainly: time, memory, and the import of the package.

The predictor is a GHN-3 of the T size with random weights, which decodes values, or with --builtin the one that
`init="ghn3"` stands for. It is loaded before; the graph is traced anew each time. Memory is that of the former alone.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar

import timm
import torchvision
from torch import nn

import hf_paraminit
from benchmarks.measure import Record, interleaved, parser, prepare, report, save, verdict
from hf_paraminit.ghn.config import PUBLISHED_CONFIGS
from hf_paraminit.ghn.model import GHN, GRAPHS
from hf_paraminit.initializers.registry import create

T = TypeVar("T")

# Model -> time that the published code takes to trace it and predict its weights with GHN-3-T, in plain creations.
MODELS: dict[str, float | None] = {
    "timm/efficientnet_b0": None,
    "timm/resnet50": None,
    "timm/vit_base_patch16_224": None,
    "timm/convnext_base": None,
    "timm/swin_base_patch4_window7_224": None,
    "timm/vit_large_patch16_224": None,
    "torchvision/efficientnet_b0": 138,
    "torchvision/resnet50": 29,
    "torchvision/vit_b_16": 15,
    "torchvision/swin_b": 4.2,
    "torchvision/convnext_base": 3.5,
    "torchvision/vit_l_16": 11,
}
QUICK_MODELS = ("timm/test_resnet",)
PHASES = ("trace", "decode", "write")
LEAST_SPEEDUP = 10  # over the published code
MEMORY_ALLOWANCE = 1.2  # of written parameters and predictor
IMPORT_LIMIT_MS = 60

MEMORY_PROGRAM = """
import sys, torch, hf_paraminit
from benchmarks.init import build
name, way, source, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
model = hf_paraminit.build_model(build, name, init=source if way == "create" else None)
if way == "initialize":
    hf_paraminit.initialize(model, source)
# Unlike getrusage, the kernel's status file does not count the process that this one was started from.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
IMPORT_PROGRAM = """
import time, torch
start = time.perf_counter()
import hf_paraminit
print(1000 * (time.perf_counter() - start))
"""


def build(name: str, **arguments: Any) -> nn.Module:
    """Build a model by a name of `MODELS`."""
    library, _, model = name.partition("/")
    if library == "timm":
        return timm.create_model(model, **arguments)
    return torchvision.models.get_model(model, weights=None, **arguments)


def tiny_ghn() -> GHN:
    """Return a GHN-3-T with random weights."""
    return GHN.new(PUBLISHED_CONFIGS["tm8"], seed=0).requires_grad_(False)


def creation(name: str, predictor: hf_paraminit.Initializer) -> Callable[[], object]:
    """Return what a user calls to get an initialized model."""
    if name.startswith("timm/"):
        return lambda: _traced_anew(lambda: build(name, init=predictor))
    return lambda: _traced_anew(lambda: hf_paraminit.build_model(build, name, init=predictor))


def _traced_anew(work: Callable[[], T]) -> T:
    GRAPHS.clear()
    return work()


def time_model(name: str, predictor: hf_paraminit.Initializer, *, repeats: int) -> tuple[Record, Record | None]:
    """Compare plain creation, creation with the initializer, and `initialize` on a ready model.

    Returns:
        A line against the target, and one against the published code where its time is known.
    """
    model = build(name)
    phases: list[dict[str, float]] = []
    plain, total, alone, again = interleaved(
        [
            lambda: build(name),
            creation(name, predictor),
            lambda: phases.append(_traced_anew(lambda: hf_paraminit.initialize(model, predictor)).seconds),
            lambda: hf_paraminit.initialize(model, predictor),
        ],
        repeats=repeats,
    )
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    target, is_met = _target(millions, plain, total)
    line = {
        "model": name,
        "params M": millions,
        "plain s": plain,
        "create + init / plain": total / plain,
        "initialize / plain": alone / plain,
        "graph known / plain": again / plain,
        **{f"{phase} ms": 1e3 * statistics.median(run[phase] for run in phases[1:]) for phase in PHASES},
        "target": target,
        "result": verdict(is_met=is_met),
    }
    factor = MODELS.get(name)
    return line, None if factor is None else _against_published(name, factor, plain, total, alone)


def _against_published(name: str, factor: float, plain: float, total: float, alone: float) -> Record:
    speedup = (factor + 1) * plain / total  # the published code works on a model that has been built
    return {
        "model": name,
        "published trace + predict / plain": factor,
        "initialize / plain": alone / plain,
        "x faster": factor * plain / alone,
        "x faster with creation": speedup,
        "target": f">= {LEAST_SPEEDUP}x with creation",
        "result": verdict(is_met=speedup >= LEAST_SPEEDUP),
    }


def _target(millions: float, plain: float, total: float) -> tuple[str, bool]:
    if millions >= 80:
        return "<= 0.25x", total <= 0.25 * plain
    if millions >= 20:
        return "<= 1.0x", total <= plain
    return "<= plain + 150 ms", total <= plain + 0.150


def measure_memory(name: str, ghn: GHN, folder: str, threads: int) -> Record:
    """Compare the peak memory of processes that initialize a model, ready or on creation, with one that only builds it.

    Args:
        name: The model.
        ghn: The predictor, and
        folder: where it has been saved.
        threads: CPU threads.
    """
    plain, initialized, created = (
        1024 * _run(MEMORY_PROGRAM, name, way, f"local-dir:{folder}", str(threads))
        for way in ("plain", "initialize", "create")
    )
    model = build(name)
    report = hf_paraminit.initialize(model, hf_paraminit.load_predictor(ghn.state_dict(), config=ghn.config.to_dict()))
    written = sum(value.nbytes for key, value in model.named_parameters() if key in report.predicted)
    held = sum(parameter.nbytes for parameter in ghn.parameters())
    limit = MEMORY_ALLOWANCE * (written + held)
    return {
        "model": name,
        "written MB": written / 1e6,
        "predictor MB": held / 1e6,
        "extra peak MB": (initialized - plain) / 1e6,
        "limit MB": limit / 1e6,
        "result": verdict(is_met=initialized - plain <= limit),
        "extra MB of creation with init=": (created - plain) / 1e6,
    }


def measure_import(*, repeats: int) -> Record:
    """Time `import hf_paraminit` in processes that have imported torch."""
    milliseconds = statistics.median(_run(IMPORT_PROGRAM) for _ in range(repeats))
    return {
        "import beyond torch, ms": milliseconds,
        "target": f"<= {IMPORT_LIMIT_MS} ms",
        "result": verdict(is_met=milliseconds <= IMPORT_LIMIT_MS),
    }


def _run(program: str, *arguments: str) -> float:
    """Run a program in a process of its own and return the number it prints."""
    done = subprocess.run([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Run the benchmark."""
    options = parser("Cost of init= beside plain creation.")
    options.add_argument("models", nargs="*", help=f"timm/NAME or torchvision/NAME (default: {len(MODELS)} models)")
    options.add_argument("--only", choices=["time", "memory", "import"], help="one of the three parts")
    options.add_argument("--builtin", action="store_true", help="time the built-in predictor")
    arguments = options.parse_args()
    prepare(arguments)
    models = arguments.models or (QUICK_MODELS if arguments.quick else MODELS)
    parts = [arguments.only] if arguments.only else ["time", "memory", "import"]
    ghn = tiny_ghn()
    results: Record = {}
    if "time" in parts:
        random = hf_paraminit.load_predictor(ghn.state_dict(), config=ghn.config.to_dict())
        predictor = create("ghn3") if arguments.builtin else random
        lines = [time_model(name, predictor, repeats=arguments.repeats) for name in models]
        results["time"] = [line for line, _ in lines]
        results["published"] = [line for _, line in lines if line is not None]
        report(f"Time, {arguments.threads} thread(s), median of {arguments.repeats}", results["time"])
        report("Against the published code", results["published"])
    if "memory" in parts:
        with tempfile.TemporaryDirectory() as folder:
            ghn.save_pretrained(folder)
            results["memory"] = [measure_memory(name, ghn, folder, arguments.threads) for name in models]
        report("Peak memory", results["memory"])
    if "import" in parts:
        results["import"] = [measure_import(repeats=arguments.repeats)]
        report("Import", results["import"])
    save(arguments, results)


if __name__ == "__main__":
    main()

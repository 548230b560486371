"""What tracing a model costs beside one forward pass of it on the meta device."""

from __future__ import annotations

import copy
import statistics

import timm
import torch
from torch import nn

from benchmarks.measure import Record, interleaved, parser, prepare, report, save, verdict
from hf_paraminit.errors import TracingError
from hf_paraminit.graphs.forward_pass import BATCH_SIZE
from hf_paraminit.graphs.trace import trace
from hf_paraminit.graphs.virtual_edges import shortest_path_lengths

MODELS = (
    "resnet50",
    "densenet121",
    "efficientnet_b0",
    "mobilenetv3_large_100",
    "regnety_016",
    "convnext_tiny",
    "vit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "mixer_s16_224",
    "maxvit_tiny_rw_224",
    "inception_v3",
    "levit_192",
)
QUICK_MODELS = ("test_resnet", "test_vit")
MOST_FORWARDS = 2.5  # median over the models


def one_per_module() -> list[str]:
    """The model with the shortest name of each of timm's modules."""
    names = {module: timm.list_models(module=module) for module in timm.list_modules()}
    return [min(models, key=lambda name: (len(name), name)) for models in names.values() if models]


def build(name: str) -> nn.Module:
    """Build a model; on the meta device where its constructor allows that, since tracing needs no values."""
    try:
        with torch.device("meta"):
            return timm.create_model(name)
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        return timm.create_model(name)


def time_model(name: str, *, repeats: int) -> Record:
    """Compare a trace, a forward pass on meta, and the part of the trace that computes distances."""
    model = build(name)
    graph = trace(model)
    replica = copy.deepcopy(model).to("meta")
    assert graph.input_size is not None
    images = torch.empty(BATCH_SIZE, *graph.input_size, device="meta")
    forward, traced, distances = interleaved(
        [
            lambda: replica(images),
            lambda: trace(model),
            lambda: shortest_path_lengths(graph.edges, len(graph), graph.virtual_edge_cutoff),
        ],
        repeats=repeats,
    )
    return {
        "model": name,
        "nodes": len(graph),
        "edges": len(graph.edges),
        "forward ms": 1e3 * forward,
        "trace ms": 1e3 * traced,
        "trace / forward": traced / forward,
        "distances % of trace": 100 * distances / traced,
    }


def main() -> None:
    """Run the benchmark."""
    options = parser("Cost of tracing beside a forward pass on the meta device.")
    options.add_argument("models", nargs="*", help=f"timm models (default: {len(MODELS)} of them)")
    options.add_argument("--all", action="store_true", help="one model of each timm module")
    arguments = options.parse_args()
    prepare(arguments)
    default = QUICK_MODELS if arguments.quick else one_per_module() if arguments.all else MODELS
    records: list[Record] = []
    failures: list[Record] = []
    for name in arguments.models or default:
        try:
            records.append(time_model(name, repeats=arguments.repeats))
        except TracingError as error:
            failures.append({"model": name, "not traced": str(error).splitlines()[0][:100]})
    report(f"Tracing, {arguments.threads} thread(s), median of {arguments.repeats}", records)
    report("Not traced", failures)
    results: Record = {"models": records, "not_traced": failures}
    if records:
        ratio = statistics.median(line["trace / forward"] for line in records)
        summary = {
            "models": len(records),
            "median trace / forward": ratio,
            "target": f"<= {MOST_FORWARDS}",
            "result": verdict(is_met=ratio <= MOST_FORWARDS),
        }
        results["summary"] = summary
        report("Summary", [summary])
    save(arguments, results)


if __name__ == "__main__":
    main()

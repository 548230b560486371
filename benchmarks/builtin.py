"""Does the built-in predictor help? Learning curves on digits, which it never saw, against defaults and controls.

    python -m benchmarks.builtin [--predictor DIR] [--seeds N] [--nets R,C,V,M] [--json FILE] [--update]

The protocol was fixed before results were seen: 1,000 training digits, 500 test digits of other writers, AdamW, 150
steps, the same order of images for all initialisations of a seed. AUC is the mean accuracy over the five steps shown.
The controls keep the scale of the prediction and take its structure away: `permuted` shuffles the values inside each
tensor, `matched` draws them anew with the tensor's mean and standard deviation. About 1 minute per seed on one core.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from tqdm.auto import tqdm

import hf_paraminit
from hf_paraminit.evaluation.digits import load_digits
from hf_paraminit.evaluation.learning_curve import Recipe, learning_curve, mean_accuracy
from hf_paraminit.initializers.graph_hypernetwork import BUILTIN_FOLDER

# Small networks that are not in the training pool; learning rates of the default initialisation, not tuned.
NETS: dict[str, tuple[str, dict[str, Any], float]] = {
    "R": ("resnet18", {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128)}, 3e-3),
    "C": ("convnext_tiny", {"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 128), "patch_size": 2}, 2e-3),
    "V": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4},
        1e-3,
    ),
    "M": ("mobilenetv3_small_050", {}, 3e-3),
}
INITS = ("default", "default recalibrated", "no zero branches", "ghn3", "ghn3 recalibrated", "permuted", "matched")
WITH_BATCH_NORM = ("R", "M")  # statistics can be estimated before the first step
WITH_ZERO_BRANCHES = ("R",)  # timm starts the last norm of each residual branch at zero
STEPS = (10, 20, 40, 80, 150)
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # two-sided, n - 1 d.o.f.


def main() -> None:
    """Run the curves, print the tables, and store them with the predictor when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictor", type=Path, default=BUILTIN_FOLDER / "ghn3")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--update", action="store_true", help="write the tables into the predictor's folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    curves = run(arguments.predictor, arguments.nets.split(","), arguments.seeds)
    tables = [table(net, curves[net]) for net in curves]
    for record in tables:
        print(format_table(record))
    if arguments.json:
        arguments.json.write_text(json.dumps({"curves": curves, "tables": tables}, indent=2))
    if arguments.update:
        update_card(arguments.predictor, tables)


def run(predictor: Path, nets: list[str], num_seeds: int) -> dict[str, dict[str, list[dict[int, float]]]]:
    """Return the curves by network and initialisation, one per seed."""
    train, test = load_digits("train"), load_digits("test")
    curves: dict[str, dict[str, list[dict[int, float]]]] = {}
    cells = [(net, init) for net in nets for init in INITS if _applies(net, init)]
    for net, init in tqdm(cells, desc="curves", unit="cell"):
        recipe = Recipe(learning_rate=NETS[net][2], evaluate_at=STEPS)
        for seed in range(num_seeds):
            model = build(net, init, predictor, seed)
            if init.endswith("recalibrated"):
                hf_paraminit.recalibrate_batchnorm(model, train[0].split(64)[:15])
            curve = learning_curve(model, train, test, recipe, seed=seed)
            curves.setdefault(net, {}).setdefault(init, []).append(curve)
    return curves


def _applies(net: str, init: str) -> bool:
    if init.endswith("recalibrated"):
        return net in WITH_BATCH_NORM
    return init != "no zero branches" or net in WITH_ZERO_BRANCHES


def build(net: str, init: str, predictor: Path, seed: int) -> nn.Module:
    """Build one network; timm's own draws depend on the seed alone."""
    name, settings, _ = NETS[net]
    torch.manual_seed(seed)
    if init.startswith("default"):
        return timm.create_model(name, num_classes=10, **settings)
    if init == "no zero branches":
        return timm.create_model(name, num_classes=10, zero_init_last=False, **settings)
    source = f"local-dir:{predictor}"
    wanted, further = (f"control:{init}", {"of": source}) if init in ("permuted", "matched") else (source, {})
    return timm.create_model(name, num_classes=10, init=wanted, init_kwargs={"seed": seed, **further}, **settings)


def table(net: str, curves: dict[str, list[dict[int, float]]]) -> dict[str, Any]:
    """Summarise one network: mean accuracies, AUC with its standard deviation, paired difference to the default."""
    name = NETS[net][0]
    rows = []
    reference = [mean_accuracy(curve) for curve in curves["default"]]
    for init, runs in curves.items():
        areas = [mean_accuracy(curve) for curve in runs]
        accuracies = [f"{statistics.mean(curve[step] for curve in runs):.1f}" for step in STEPS]
        rows.append([init, *accuracies, _with_spread(areas), _paired_difference(areas, reference)])
    return {
        "caption": f"Net {net} ({name}, small), test accuracy in percent, {len(reference)} seeds",
        "columns": ["init", *(f"step {step}" for step in STEPS), "AUC (sd)", "AUC - default [95 %]"],
        "rows": rows,
    }


def _with_spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ({statistics.stdev(values):.1f})"


def _paired_difference(values: list[float], reference: list[float]) -> str:
    differences = [value - other for value, other in zip(values, reference, strict=True)]
    if not any(differences):
        return "-"
    half_width = T_95[len(differences)] * statistics.stdev(differences) / math.sqrt(len(differences))
    return f"{statistics.mean(differences):+.1f} +- {half_width:.1f}"


def format_table(record: dict[str, Any]) -> str:
    """Align a table for the terminal."""
    lines = [record["columns"], *record["rows"]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(record["columns"]))]
    body = "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return f"\n{record['caption']}\n{body}"


def update_card(folder: Path, tables: list[dict[str, Any]]) -> None:
    """Store measured tables in the predictor's config.json and README.md."""
    ghn = hf_paraminit.GHN.from_pretrained(folder)
    ghn.metadata.setdefault("card", {})["metrics"] = tables
    (folder / "README.md").unlink(missing_ok=True)  # the Hub mixin keeps an existing card
    ghn.half().save_pretrained(folder)


if __name__ == "__main__":
    main()

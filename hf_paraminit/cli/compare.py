"""Compare initialisations of models on your data: small paired trainings, intervals, one page to read.

MODEL is any name that timm.create_model takes, or a benchmark network (R, C, V, M and others). DATA is digits,
synthetic, synthetic-novel, photos, a folder with one sub-folder of images per class (or train and test folders of
such), or a data set of timm, as torch/cifar10@FOLDER. The default initialisation is always compared. DIR gets
index.html (the page), summary.csv, cells.csv, summary.json, runs.jsonl and curves.png. The same command goes on where
an interrupted one stopped.
"""

import argparse
import json
import logging
import shlex
from pathlib import Path

from hf_paraminit.cli.arguments import Subparsers, add_json_switch, json_object, positive, verb_parser
from hf_paraminit.cli.table import table
from hf_paraminit.errors import MissingDependencyError
from hf_paraminit.evaluation.comparison import Comparison, compare_inits
from hf_paraminit.evaluation.statistics import Estimate
from hf_paraminit.evaluation.summary import Row
from hf_paraminit.io.atomic import atomic_write
from hf_paraminit.plots.learning_curves import draw_learning_curves
from hf_paraminit.training.processes import is_main_process

EXAMPLES = """
paraminit compare resnet18 mobilenetv3_small_050 --data digits --inits ghn3,he,strong-default --output cmp
paraminit compare R C V M --inits ghn3,ghn3+recalibrated --seeds 8 --output cmp
paraminit compare vit_tiny_patch16_224 --data ./photos-by-class --img-size 64 --inits mimetic --seeds 6 --output vit
paraminit compare R --inits mixed --define '{"mixed": {"*conv*": "ghn3", "*": "default"}}' --output mixed
torchrun --nproc_per_node 2 -m hf_paraminit compare R --inits ghn3 --output cmp
"""

logger = logging.getLogger("hf_paraminit")


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "compare", __doc__, examples=EXAMPLES)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="name of timm, or a benchmark network")
    parser.add_argument("--data", default="digits", metavar="DATA", help="what to train and test on (default: digits)")
    parser.add_argument("--inits", required=True, type=names, metavar="A,B,...", help="what init= takes, by name")
    parser.add_argument(
        "--define", type=json_object, default={}, metavar="JSON", help="names for --inits: label -> value of init="
    )
    parser.add_argument(
        "--init-kwargs", type=json_object, default={}, metavar="JSON", help="settings of initializers: label -> object"
    )
    parser.add_argument("--seeds", type=positive, default=8, metavar="N", help="seeds per cell (default: 8)")
    parser.add_argument("--steps", type=positive, default=150, metavar="N", help="optimiser steps (default: 150)")
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help="images per step (default: 64)")
    parser.add_argument("--img-size", type=positive, default=32, metavar="N", help="side of the images (default: 32)")
    parser.add_argument("--no-tuning", action="store_true", help="use the base learning rate of each model for all")
    parser.add_argument(
        "--validation", action="store_true", help="report on validation images; keep the test for later"
    )
    parser.add_argument("--processes", type=positive, metavar="N", help="worker processes (default: one per core)")
    parser.add_argument(
        "--output", type=Path, default=Path("comparison"), metavar="DIR", help="folder to write (default: comparison)"
    )
    add_json_switch(parser)


def run(arguments: argparse.Namespace) -> None:
    comparison = compare_inits(
        arguments.models,
        {label: arguments.define.get(label, label) for label in arguments.inits},
        data=arguments.data,
        seeds=arguments.seeds,
        output=arguments.output,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        img_size=arguments.img_size,
        tune=not arguments.no_tuning,
        block="validation" if arguments.validation else "test",
        processes=arguments.processes,
        init_kwargs=arguments.init_kwargs,
        command=command_line(arguments),
    )
    if not is_main_process():
        return
    save_curves(comparison, arguments.output / "curves.png")
    if arguments.json:
        print(json.dumps(comparison.to_dict(), indent=2))
    else:
        print(text_of(comparison))
        print(f"Written to {arguments.output}; open {arguments.output / 'index.html'}.")


def names(text: str) -> list[str]:
    """Type of an argument that holds names between commas."""
    found = [name.strip() for name in text.split(",")]
    if not all(found) or len(set(found)) != len(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different names between commas")
    return found


def command_line(arguments: argparse.Namespace) -> str:
    """The command that repeats this comparison."""
    words = ["paraminit", "compare", *arguments.models, "--data", arguments.data, "--inits", ",".join(arguments.inits)]
    for option in ("define", "init_kwargs"):
        if value := getattr(arguments, option):
            words += [f"--{option.replace('_', '-')}", json.dumps(value)]
    for option in ("seeds", "steps", "batch_size", "img_size"):
        words += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
    words += ["--no-tuning"] * arguments.no_tuning + ["--validation"] * arguments.validation
    return shlex.join([*words, "--output", str(arguments.output)])


def save_curves(comparison: Comparison, path: Path) -> None:
    """Write the curves as a picture; without matplotlib, which is optional, say so and go on."""
    summary = comparison.summary
    rows = {net: [row for row in summary.rows if row.net == net] for net in summary.nets}
    titles = {net: comparison.settings["models"][net]["title"] for net in summary.nets if rows[net]}
    if not titles:
        return
    try:
        figure = draw_learning_curves(
            {title: {row.init: row.curve for row in rows[net]} for net, title in titles.items()},
            {title: {row.init: row.deviation for row in rows[net]} for net, title in titles.items()},
            title=f"{comparison.settings['data']}, mean and standard deviation over seeds",
        )
    except MissingDependencyError as error:
        logger.warning("No %s: %s", path.name, error)
        return
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def text_of(comparison: Comparison) -> str:
    """Tables and the verdict for a terminal."""
    summary = comparison.summary
    parts = []
    for net in summary.nets:
        rows = [row for row in summary.rows if row.net == net]
        if rows:
            title = comparison.settings["models"][net]["title"]
            parts.append(f"{title}, accuracy in percent by step\n{table(header(rows), [cells(row) for row in rows])}")
    parts += [f"Failed: {init} on {net} ({count} cells): {error}" for net, init, count, error in summary.failures]
    return "\n\n".join([*parts, "\n".join([summary.verdict, *summary.cautions])])


def header(rows: list[Row]) -> list[str]:
    """Column titles of `cells`."""
    return ["init", *(str(step) for step in rows[0].curve), "AUC (sd)", "minus default [95 %]", "rate x", "untuned"]


def cells(row: Row) -> list[str]:
    """One row as text."""
    untuned = "-" if row.untuned_auc is None else f"{row.untuned_auc:.1f}"
    return [
        row.init,
        *(f"{value:.1f}" for value in row.curve.values()),
        f"{row.auc:.1f} ({row.auc_deviation:.1f})",
        interval(row.difference),
        f"{row.factor:.2f}",
        untuned,
    ]


def interval(estimate: Estimate | None) -> str:
    """A difference with its interval as text."""
    if estimate is None:
        return "-"
    ends = "" if estimate.low is None else f" [{estimate.low:+.1f}, {estimate.high:+.1f}]"
    return f"{estimate.mean:+.1f}{ends}"

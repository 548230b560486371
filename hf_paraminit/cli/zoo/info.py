"""Show what a model zoo holds: networks, settings, accuracies by epoch, and what is wrong with it.

Files are checked by their headers; --check reads all weights, too, and names models with NaN, infinite or huge ones.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from hf_paraminit.cli.arguments import Subparsers, add_json_switch, verb_parser
from hf_paraminit.cli.table import table
from hf_paraminit.hyperrep.tokens import TokenLayout
from hf_paraminit.hyperrep.zoo import SPLITS, Zoo
from hf_paraminit.hyperrep.zoo_card import METRICS, accuracies

EXAMPLES = """
paraminit zoo info zoo
paraminit zoo info zoo --check --max-abs 10
paraminit zoo info zoo --json
"""


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "info", __doc__, examples=EXAMPLES)
    parser.add_argument("zoo", type=Path, metavar="ZOO", help="folder of the zoo")
    parser.add_argument("--check", action="store_true", help="read all weights")
    parser.add_argument("--max-abs", type=float, metavar="X", help="with --check: also name models with larger weights")
    add_json_switch(parser)


def run(arguments: argparse.Namespace) -> None:
    zoo = Zoo.open(arguments.zoo, faults="skip")
    if arguments.check:
        zoo = zoo.clean(max_abs=arguments.max_abs)
    record = describe(zoo)
    print(json.dumps(record, indent=2) if arguments.json else as_text(record))


def describe(zoo: Zoo) -> dict[str, Any]:
    """Everything there is to say about a zoo, as JSON values."""
    layout = TokenLayout.from_tensors(zoo.tensors)
    num_models = {split: len(zoo.select(split=split).model_ids) for split in SPLITS}
    epochs = sorted({row.epoch for row in zoo.rows})
    return {
        "folder": str(zoo.folder),
        "architecture": zoo.card.get("architecture"),
        "data": zoo.card.get("data"),
        "models": num_models,
        "checkpoints": len(zoo),
        "weights": layout.num_values,
        "tokens": layout.num_tokens,
        "token_dim": layout.token_dim,
        "permutations": None if zoo.permutations is None else dict(zoo.permutations.sizes),
        "settings": zoo.card.get("settings"),
        "not_stacked_because": zoo.card.get("not_stacked_because"),
        "epochs": [{"epoch": epoch, **accuracies(zoo.select(epochs=[epoch]))} for epoch in epochs],
        "faults": zoo.faults,
    }


def as_text(record: dict[str, Any]) -> str:
    """The same for a terminal."""
    counts = ", ".join(f"{count} {split}" for split, count in record["models"].items())
    lines = [
        f"{record['folder']}: {sum(record['models'].values())} models of {record['architecture']} on {record['data']}",
        f"  models         {counts}; {record['checkpoints']} checkpoints",
        f"  weights        {record['weights']:,} in {record['tokens']} tokens of {record['token_dim']}",
        f"  permutations   {record['permutations'] or 'none known'}",
    ]
    lines += [f"  {name:<14} {values}" for name, values in (record["settings"] or {}).items() if len(values) > 1]
    rows = [[str(row["epoch"]), *(_cell(row[name]) for name in METRICS)] for row in record["epochs"]]
    header = ["epoch", *(f"{name.replace('_', ' ')} (sd)" for name in METRICS)]
    parts = ["\n".join(lines), table(header, rows)]
    return "\n\n".join([*parts, *(f"Fault: {fault}" for fault in record["faults"])])


def _cell(summary: dict[str, float] | None) -> str:
    if summary is None:
        return "-"
    return f"{100 * summary['mean']:.1f} % ({100 * summary['std']:.1f})"

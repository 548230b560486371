"""The standing benchmark: every registered initializer on small networks, as Markdown tables with intervals.

Presets: "quick" takes about ten minutes on two cores (two networks, three seeds, half the steps, validation images);
"full" takes hours (all networks, eight seeds, the test images, learning rates tuned for each initializer); "modern" and
"novel" have ten further networks each, those of "novel" of families that no built-in predictor was trained on or
developed with, each network at its own rate unless --tuning is given. An interrupted run goes on where it stopped.
Initializers that need a donor, a download or settings are left out, with the reason, unless --inits names them.
"""

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from hf_paraminit.cli.arguments import Subparsers, add_json_switch, json_object, positive, verb_parser
from hf_paraminit.cli.compare import cells, header, interval, names, save_curves
from hf_paraminit.cli.train.scales import networks_of_training
from hf_paraminit.errors import ParamInitError, PredictionError, TracingError
from hf_paraminit.evaluation.claims import LEARNED, Claim, check_claims
from hf_paraminit.evaluation.comparison import DEVELOPMENT_SEED, Comparison, compare_inits
from hf_paraminit.evaluation.fingerprint import Fingerprint, fingerprint
from hf_paraminit.evaluation.hosts import build_network, require_known
from hf_paraminit.evaluation.nets import ALL_NETS, MAIN_NETS, MODERN_NETS, NETS, NOVEL_NETS, find_net
from hf_paraminit.evaluation.tasks import Block
from hf_paraminit.initializers.graph_hypernetwork import BUILTIN_FOLDER
from hf_paraminit.initializers.initialize import initialize
from hf_paraminit.initializers.registry import list_initializers
from hf_paraminit.training.processes import is_main_process

EXAMPLES = """
paraminit benchmark --preset quick --output benchmark-quick
paraminit benchmark --preset full --output benchmark
paraminit benchmark --preset full --nets R,C,V,M --seeds 4 --no-tuning --output benchmark-untuned
paraminit benchmark --preset full --nets R,C,V,M --inits ghn3,he,lecun --output benchmark-main
"""

# Comparators that no table may lack, beside the registered initializers.
COMPARATORS = (
    "strong-default",
    f"{LEARNED}+recalibrated",
    f"permuted({LEARNED})",
    f"matched({LEARNED})",
    "permuted(mimetic)",
    "redrawn",
    "ten-times",
)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much is computed."""

    nets: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    tune: bool
    block: Block


PRESETS = {
    "quick": Preset(
        nets=("R", "C"), seeds=tuple(range(DEVELOPMENT_SEED, DEVELOPMENT_SEED + 3)), steps=80, tune=False,
        block="validation",
    ),
    "full": Preset(nets=tuple(NETS), seeds=tuple(range(8)), steps=150, tune=True, block="test"),
    "modern": Preset(nets=tuple(MODERN_NETS), seeds=tuple(range(8)), steps=150, tune=False, block="test"),
    "novel": Preset(nets=tuple(NOVEL_NETS), seeds=tuple(range(8)), steps=150, tune=False, block="test"),
}  # fmt: skip


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "benchmark", __doc__, examples=EXAMPLES)
    parser.add_argument("--preset", choices=list(PRESETS), default="quick", help="how much (default: quick)")
    parser.add_argument("--nets", type=names, metavar="A,B,...", help=f"networks: {', '.join(ALL_NETS)}")
    parser.add_argument("--inits", type=names, metavar="A,B,...", help="instead of all registered and the controls")
    parser.add_argument(
        "--init-kwargs", type=json_object, default={}, metavar="JSON", help="settings of initializers: label -> object"
    )
    parser.add_argument("--seeds", type=positive, metavar="N", help="seeds per cell")
    parser.add_argument(
        "--tuning",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="tune the learning rate of each network and initializer, or use the network's base rate for all "
        "(default: as the preset says)",
    )
    parser.add_argument("--processes", type=positive, metavar="N", help="worker processes (default: one per core)")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmark"), metavar="DIR", help="folder to write (default: benchmark)"
    )
    add_json_switch(parser)


def run(arguments: argparse.Namespace) -> None:
    preset = PRESETS[arguments.preset]
    for name in arguments.nets or preset.nets:
        require_known(find_net(name))  # before minutes of preparation
    inits, left_out = (arguments.inits, {}) if arguments.inits else benchmarked_inits()
    seeds = preset.seeds
    if arguments.seeds:
        seeds = tuple(range(seeds[0], seeds[0] + arguments.seeds))
    comparison = compare_inits(
        arguments.nets or preset.nets,
        inits,
        seeds=seeds,
        output=arguments.output,
        steps=preset.steps,
        tune=preset.tune if arguments.tuning is None else arguments.tuning,
        block=preset.block,
        processes=arguments.processes,
        init_kwargs=arguments.init_kwargs,
        trained_on=training_fingerprints() if any(LEARNED in init for init in inits) else (),
        command=command_line(arguments),
    )
    if not is_main_process():
        return
    save_curves(comparison, arguments.output / "curves.png")
    claims = check_claims(comparison.summary)
    if arguments.json:
        record = {**comparison.to_dict(), "claims": [_claim_record(claim) for claim in claims], "left_out": left_out}
        print(json.dumps(record, indent=2, default=repr))
    else:
        print(markdown(comparison, claims, left_out))


def command_line(arguments: argparse.Namespace) -> str:
    """The command that repeats this benchmark."""
    words = ["paraminit", "benchmark", "--preset", arguments.preset]
    for option in ("nets", "inits"):
        if chosen := getattr(arguments, option):
            words += [f"--{option}", ",".join(chosen)]
    if arguments.init_kwargs:
        words += ["--init-kwargs", json.dumps(arguments.init_kwargs)]
    if arguments.seeds:
        words += ["--seeds", str(arguments.seeds)]
    if arguments.tuning is not None:
        words.append("--tuning" if arguments.tuning else "--no-tuning")
    return shlex.join([*words, "--output", str(arguments.output)])


def benchmarked_inits() -> tuple[list[str], dict[str, str]]:
    """Every registered initializer that can start a small network as it is, the comparators, and why others cannot."""
    found, left_out = [], {}
    net = NETS[MAIN_NETS[0]]
    for name in list_initializers():
        with torch.random.fork_rng(devices=[]):
            model = build_network(net, num_classes=10, in_chans=3, img_size=32)
        try:
            initialize(model, name)
        except ParamInitError as error:
            if _is_about_the_network(error):
                found.append(name)
            else:
                left_out[name] = str(error)
        else:
            found.append(name)
    return [*found, *COMPARATORS], left_out


def _is_about_the_network(error: ParamInitError) -> bool:
    """Whether an initializer only refused this network; it may take others."""
    return isinstance(error, (PredictionError, TracingError))


def training_fingerprints() -> list[Fingerprint]:
    """Fingerprints of the networks that the built-in predictor was trained on, drawn again from its recipe."""
    config = json.loads((BUILTIN_FOLDER / LEARNED / "config.json").read_text(encoding="utf-8"))
    recipe: dict[str, Any] = config["metadata"]["training"]
    networks = networks_of_training(recipe["networks"], recipe["seed"])
    return [fingerprint(network) for network in tqdm(networks, desc="networks of training", unit="network")]


def markdown(comparison: Comparison, claims: Sequence[Claim], left_out: dict[str, str]) -> str:
    """What the README shows: the overall table, one per network, the claims, what was left out."""
    summary, settings = comparison.summary, comparison.settings
    pixels = ", ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in comparison.pixels.items())
    parts = [
        f"{summary.verdict}",
        f"Raw pixels, accuracy in percent: {pixels}. {' '.join(summary.cautions)}",
        _overall_table(comparison),
    ]
    for net in summary.nets:
        rows = [row for row in summary.rows if row.net == net]
        if rows:
            title = settings["models"][net]["title"]
            caption = f"Net {title}, {settings['models'][net]['family']}, {len(rows[0].seeds)} seeds"
            parts.append(f"{caption}\n\n{markdown_table(header(rows), [cells(row) for row in rows])}")
    parts.append(markdown_table(["claim", "what we see", "95 % interval", "so?"], [_claim_cells(c) for c in claims]))
    failures = [[init, net, str(count), error] for net, init, count, error in summary.failures]
    if failures:
        parts.append("Failed\n\n" + markdown_table(["init", "net", "cells", "error"], failures))
    if left_out:
        parts.append("Left out\n\n" + markdown_table(["init", "reason"], [[*pair] for pair in left_out.items()]))
    if comparison.seen:
        parts.append(f"Counted as seen in training: {', '.join(comparison.seen)}.")
    return "\n\n".join(parts)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; bars inside cells are escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _overall_table(comparison: Comparison) -> str:
    rows = []
    for init, overall in comparison.summary.overall.items():
        p_value = "-" if overall.corrected_p_value is None else f"{overall.corrected_p_value:.3f}"
        rows.append(
            [
                init,
                interval(overall.estimate),
                f"{overall.improved} of {overall.architectures}",
                f"{overall.sign_p_value:.3f}",
                p_value,
                "yes" if overall.is_never_worse else "no",
                overall.corrected_verdict,
            ]
        )
    columns = ["init", "AUC - default [95 %]", "nets improved", "sign test p", "p (Holm)", "never worse", "verdict"]
    return markdown_table(columns, rows)


def _claim_cells(claim: Claim) -> list[str]:
    ends = "-" if claim.interval is None else f"{claim.interval[0]:+.1f} to {claim.interval[1]:+.1f}"
    return [claim.claim, claim.seen, ends, claim.answer]


def _claim_record(claim: Claim) -> dict[str, Any]:
    return {"claim": claim.claim, "seen": claim.seen, "interval": claim.interval, "answer": claim.answer}

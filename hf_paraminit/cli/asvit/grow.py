"""Grow a seed topology into a series of networks, one more block and a larger width per step.

DIR gets candidates/runs.jsonl (every score), steps/runs.jsonl (every step with all its candidates), settings.json and
growth.png. The same command goes on where an interrupted one stopped. Under torchrun or `accelerate launch` candidates
are shared out. Build a result with timm.create_model("asvit", arch=STRING, init="ghn3").
"""

import argparse
import json

from hf_paraminit.asvit.architecture import Architecture
from hf_paraminit.asvit.grow import GROWTH_SEED, RATIOS, GrowthConfig, GrowthResult, grow
from hf_paraminit.asvit.ranking import TIE_BREAKS
from hf_paraminit.cli.arguments import Subparsers, add_json_switch, positive, verb_parser
from hf_paraminit.cli.asvit.options import add_score_arguments, run_settings, save_picture, score_settings
from hf_paraminit.cli.table import table
from hf_paraminit.plots.asvit import draw_growth
from hf_paraminit.training.processes import is_main_process

EXAMPLES = """
paraminit asvit grow --arch "8,2,3|4,1,2|4,1,4|4,1,6|32" --output growth
paraminit asvit grow --arch "8,2,3|4,1,2|4,1,4|4,1,6|32" --rewards exp --img-size 64 --stop-params 5 --output quick
torchrun --nproc_per_node 2 -m hf_paraminit asvit grow --arch "4,2,2|2,1,2|2,1,2|2,1,2|16" --output growth
"""


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "grow", __doc__, examples=EXAMPLES)
    parser.add_argument("--arch", required=True, metavar="STRING", help="seed topology, as the search prints it")
    add_score_arguments(parser, default_seed=GROWTH_SEED)
    parser.add_argument("--width", type=positive, default=8, metavar="N", help="scored width at the start (default: 8)")
    parser.add_argument("--scale", type=positive, default=4, metavar="N", help="real over scored width (default: 4)")
    parser.add_argument(
        "--ratios", type=ratios, default=RATIOS, metavar="A,B,...", help="growth of the width (default: .05,.1,.15,.2)"
    )
    parser.add_argument(
        "--stop-params", type=float, default=80, metavar="M", help="end at so many million parameters (default: 80)"
    )
    parser.add_argument(
        "--max-params", type=float, default=110, metavar="M", help="largest candidate, in millions (default: 110)"
    )
    parser.add_argument("--max-macs", type=float, metavar="G", help="costliest candidate, in GMACs (default: no limit)")
    parser.add_argument(
        "--tie-break", choices=TIE_BREAKS, default="fixed", help="upstream: as published (default: fixed)"
    )
    add_json_switch(parser)


def run(arguments: argparse.Namespace) -> None:
    config = GrowthConfig(
        arch=Architecture.parse(arguments.arch).topology,
        scores=score_settings(arguments),
        width=arguments.width,
        scale=arguments.scale,
        ratios=arguments.ratios,
        stop_params=arguments.stop_params * 1e6,
        max_params=arguments.max_params * 1e6,
        max_macs=None if arguments.max_macs is None else arguments.max_macs * 1e9,
        tie_break=arguments.tie_break,
    )
    result = grow(config, **run_settings(arguments))
    if not is_main_process():
        return
    save_picture(
        draw_growth,
        arguments.output / "growth.png",
        [arch.depths for arch in result.path],
        [arch.width for arch in result.path],
        [arch.num_params() for arch in result.path],
        seed=config.arch,
    )
    if arguments.json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    print(text_of(result))
    print(f"Ended: {result.stopped}. Written to {arguments.output}.")


def ratios(text: str) -> tuple[float, ...]:
    """Type of an argument that holds shares between commas."""
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers between commas") from error


def text_of(result: GrowthResult) -> str:
    """One line per network."""
    steps = [step for step in result.steps if step["architecture"] is not None]
    names = sorted({name for step in steps for name in step["scores"]})
    rows = [
        [
            step["architecture"],
            f"{step['params'] / 1e6:.2f}",
            f"{step['macs'] / 1e9:.3f}",
            *(f"{step['scores'][name]:.4g}" for name in names),
        ]
        for step in steps
    ]
    return table(["architecture", "M params", "GMACs", *names], rows)

"""Search a seed topology by reinforcement learning on scores that need no training.

--rewards exp (length distortion) needs no images at all; ntk looks at 16 unlabelled ones, generated or from a folder.
DIR gets candidates/runs.jsonl (every score), steps/runs.jsonl (the log), settings.json and search.png. The same command
goes on where an interrupted one stopped. Under torchrun or `accelerate launch` the draws of a candidate are shared out.
"""

import argparse
import json

from hf_paraminit.asvit.policy import SEED
from hf_paraminit.asvit.search import SearchConfig, search
from hf_paraminit.cli.arguments import Subparsers, add_json_switch, positive, verb_parser
from hf_paraminit.cli.asvit.options import add_score_arguments, run_settings, save_picture, score_settings
from hf_paraminit.plots.asvit import draw_search
from hf_paraminit.training.processes import is_main_process

EXAMPLES = """
paraminit asvit search --output search
paraminit asvit search --img-size 64 --images ./photos --output search
paraminit asvit search --rewards exp --img-size 64 --steps 100 --output quick
torchrun --nproc_per_node 2 -m hf_paraminit asvit search --img-size 64 --output search
"""


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "search", __doc__, examples=EXAMPLES)
    add_score_arguments(parser, default_seed=SEED)
    parser.add_argument("--steps", type=positive, default=500, metavar="N", help="sampled topologies (default: 500)")
    parser.add_argument("--width", type=positive, default=32, metavar="N", help="of the first stage (default: 32)")
    parser.add_argument("--learning-rate", type=float, default=0.08, metavar="X", help="of the policy (default: 0.08)")
    parser.add_argument("--momentum", type=float, default=0.9, metavar="X", help="of the baseline (default: 0.9)")
    parser.add_argument(
        "--buffer-size", type=positive, default=20, metavar="N", help="recent scores that scale a change (default: 20)"
    )
    parser.add_argument(
        "--relative-eps", type=float, metavar="X", help="floor of that range, relative (default: the published 1e-6)"
    )
    parser.add_argument("--constraint", choices=("params", "macs"), default="params", help="what a weight penalises")
    parser.add_argument(
        "--constraint-weight", type=float, default=0.0, metavar="X", help="of the constraint's change (default: 0)"
    )
    add_json_switch(parser)


def run(arguments: argparse.Namespace) -> None:
    config = SearchConfig(
        scores=score_settings(arguments),
        steps=arguments.steps,
        width=arguments.width,
        seed=arguments.seed,
        learning_rate=arguments.learning_rate,
        baseline_momentum=arguments.momentum,
        buffer_size=arguments.buffer_size,
        relative_eps=arguments.relative_eps,
        constraint=arguments.constraint,
        constraint_weight=arguments.constraint_weight,
    )
    result = search(config, **run_settings(arguments))
    if not is_main_process():
        return
    save_picture(
        draw_search,
        arguments.output / "search.png",
        [step["reward"] for step in result.steps],
        [step["baseline"] for step in result.steps],
        [step["entropy"] for step in result.steps],
        [step["step"] for step in result.steps if step["failure"] is not None],
        best=result.architecture.topology,
    )
    if arguments.json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    print(f"Seed topology  {result.architecture.canonical}")
    print(f"Best sampled   {result.best_sampled.canonical if result.best_sampled else 'none: every candidate failed'}")
    print(f"{len(result.steps)} steps, {result.num_failed} failed candidates. Written to {arguments.output}.")

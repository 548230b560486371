"""Generate splits of DeepNets-1M in the published file format.

Give the same command again to go on where an interrupted run was: finished networks are not drawn twice. A network
depends on the seed, the split and its number alone, not on the number of processes: workers of this machine
(--processes), or those of `accelerate launch` and torchrun, which share the work.
"""

import argparse
from pathlib import Path

from hf_paraminit.cli.arguments import Subparsers, positive, seed, verb_parser
from hf_paraminit.deepnets.generator import CHUNK_SIZE, generate
from hf_paraminit.deepnets.splits import SPLITS
from hf_paraminit.training.processes import is_main_process

EXAMPLES = """
paraminit deepnets generate val test --output data
paraminit deepnets generate train --networks 10000 --processes 8 --output data
torchrun --nproc_per_node 8 -m hf_paraminit deepnets generate train --output data
"""


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "generate", __doc__, examples=EXAMPLES)
    parser.add_argument("splits", nargs="+", metavar="SPLITS", choices=list(SPLITS), help=", ".join(SPLITS))
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the files")
    parser.add_argument("--networks", type=positive, metavar="N", help="networks per split (default: as published)")
    parser.add_argument("--seed", type=seed, metavar="N", help="of the networks (default: that of the split)")
    parser.add_argument("--processes", type=positive, default=1, metavar="N", help="worker processes (default: 1)")
    parser.add_argument(
        "--chunk",
        type=positive,
        default=CHUNK_SIZE,
        metavar="N",
        help=f"networks kept at a time (default: {CHUNK_SIZE})",
    )


def run(arguments: argparse.Namespace) -> None:
    for split in arguments.splits:
        file = generate(
            split,
            arguments.output,
            num_networks=arguments.networks,
            seed=arguments.seed,
            processes=arguments.processes,
            chunk_size=arguments.chunk,
        )
        if is_main_process():
            print(f"{split}: written to {file}")

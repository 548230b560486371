"""Turn a published model zoo into one of ours: trials with params.json, result.json and checkpoint_*/checkpoints.

Nothing in its files is executed. Trials that are damaged, lack epochs or have other tensors are named, and refused
unless --skip-faulty leaves them out.
"""

import argparse
import json
from pathlib import Path

from hf_paraminit.cli.arguments import Subparsers, add_json_switch, json_object, positive, verb_parser
from hf_paraminit.cli.zoo.info import as_text, describe
from hf_paraminit.cli.zoo_networks import network_of
from hf_paraminit.hyperrep.zoo_import import import_zoo
from hf_paraminit.hyperrep.zoo_nets import ZOO_NETS, example_images

EXAMPLES = """
paraminit zoo import ./published-zoo --output zoo
paraminit zoo import ./mnist-zoo --model cnn-small --output zoo
paraminit zoo import ./cifar10-resnets --model resnet18 --output zoo --skip-faulty
"""


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "import", __doc__, examples=EXAMPLES)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder with a sub-folder for each trial")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--model", metavar="NAME", help="network of the zoo, if known: its layers are not guessed then")
    parser.add_argument("--num-classes", type=positive, default=10, metavar="N", help="its outputs (default: 10)")
    parser.add_argument("--in-chans", type=positive, metavar="N", help="channels of its images")
    parser.add_argument("--img-size", type=positive, metavar="N", help="side of its images")
    parser.add_argument(
        "--model-kwargs", type=json_object, default={}, metavar="JSON", help="arguments of the network's constructor"
    )
    parser.add_argument("--skip-faulty", action="store_true", help="leave faulty trials out")
    add_json_switch(parser)


def run(arguments: argparse.Namespace) -> None:
    published = ZOO_NETS.get(arguments.model)
    channels = arguments.in_chans or (published.in_chans if published else 3)
    size = arguments.img_size or (published.img_size if published else 32)
    network = network_of(arguments, (channels, size, size), arguments.num_classes) if arguments.model else None
    zoo = import_zoo(
        arguments.source,
        arguments.output,
        architecture=arguments.model or arguments.source.name,
        model=network() if network else None,
        images=example_images(channels, size),
        faults="skip" if arguments.skip_faulty else "refuse",
        card={"network": network.to_dict()} if network else {},
    )
    record = describe(zoo)
    print(json.dumps(record, indent=2) if arguments.json else f"{as_text(record)}\nWritten to {arguments.output}.")

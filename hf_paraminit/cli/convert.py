"""Turn a checkpoint of a published hypernetwork into a folder with config.json and model.safetensors.

Reads the files of GHN-3 (joblib, compressed or not), of ppuda and of its training scripts (torch), and safetensors.
Nothing in them is executed. The folder can be used as init="local-dir:DIR" and pushed to the Hub.
"""

import argparse
import json
from pathlib import Path

import torch

from hf_paraminit.cli.arguments import Subparsers, add_json_switch, json_object, verb_parser
from hf_paraminit.errors import CheckpointError, OutputError, PredictorNotFoundError
from hf_paraminit.ghn.model import GHN

EXAMPLES = """
paraminit convert ghn3xlm16.pt --output ./ghn3-xl
paraminit convert ghn3tm8.pt --dtype float16 --output ./ghn3-t
paraminit convert weights.safetensors --config '{"hidden_dim": 64, "num_layers": 3}' --output ./mine
"""


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "convert", __doc__, examples=EXAMPLES)
    parser.add_argument("file", type=Path, metavar="FILE", help="checkpoint file")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--config",
        type=json_object,
        metavar="JSON",
        help="architecture, in our or the published names (default: what the file says or its shapes imply)",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of the stored weights"
    )
    add_json_switch(parser)


def run(arguments: argparse.Namespace) -> None:
    if arguments.output.exists() and not arguments.output.is_dir():
        raise OutputError(f"--output {arguments.output} is a file; name a folder.")
    if not arguments.file.is_file():
        raise PredictorNotFoundError(f"There is no checkpoint file {arguments.file}; check the path.")
    ghn = GHN.from_file(arguments.file, arguments.config)
    _cast(ghn, getattr(torch, arguments.dtype))
    ghn.save_pretrained(arguments.output)
    record = {
        "source": str(arguments.file),
        "sha256": ghn.provenance["sha256"],
        "paraminit_type": ghn.paraminit_type,
        "config": ghn.config.to_dict(),
        "num_parameters": sum(parameter.numel() for parameter in ghn.parameters()),
        "dtype": arguments.dtype,
        "output": str(arguments.output),
    }
    if arguments.json:
        print(json.dumps(record, indent=2))
    else:
        print(f"{record['source']} (sha256 {record['sha256']})")
        print(f"  {record['paraminit_type']}, {record['num_parameters']:,} parameters, stored as {record['dtype']}")
        print(*(f"  {name:<20} {value}" for name, value in ghn.config.to_dict().items()), sep="\n")
        print(f'Written to {arguments.output}. Use with init="local-dir:{arguments.output}".')


def _cast(ghn: GHN, dtype: torch.dtype) -> None:
    ghn.to(dtype)
    if spoiled := [name for name, tensor in ghn.named_parameters() if not torch.isfinite(tensor).all()]:
        raise CheckpointError(
            f"{', '.join(spoiled)} hold values beyond the range of {dtype}; choose --dtype bfloat16 or float32."
        )

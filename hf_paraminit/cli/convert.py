"""Turn a checkpoint of published code into a folder with config.json and model.safetensors, or a learngene back.

Reads the files of GHN-3 (joblib, compressed or not), of ppuda, LeTs and TLEG and of their training scripts (torch), and
safetensors. Nothing in them is executed. The folder can be used as init="local-dir:DIR" and pushed to the Hub. With
--published a learngene is written as the published code of LeTs or TLEG stores it, {"model": tensors}.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from hf_paraminit.cli.arguments import Subparsers, add_json_switch, json_object, verb_parser
from hf_paraminit.errors import CheckpointError, OutputError, PredictorNotFoundError
from hf_paraminit.initializers.predictor import read_predictor
from hf_paraminit.io.atomic import atomic_write
from hf_paraminit.io.pretrained import CONFIG_FILE, PretrainedPredictor, read_predictor_config
from hf_paraminit.lets.generator import LeTsGenerator
from hf_paraminit.lets.tleg import TLEG

EXAMPLES = """
paraminit convert ghn3xlm16.pt --output ./ghn3-xl
paraminit convert ghn3tm8.pt --dtype float16 --output ./ghn3-t
paraminit convert weights.safetensors --config '{"hidden_dim": 64, "num_layers": 3}' --output ./mine
paraminit convert learngene.pth --config '{"num_heads": 6}' --output ./learngene
paraminit convert ./learngene --published --output learngene.pth
"""

LEARNGENES: dict[str, type[LeTsGenerator | TLEG]] = {"learngene-LeTs": LeTsGenerator, "tleg": TLEG}


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "convert", __doc__, examples=EXAMPLES)
    parser.add_argument("file", type=Path, metavar="FILE", help="checkpoint file; with --published also a folder")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder to write; with --published a file"
    )
    parser.add_argument(
        "--config",
        type=json_object,
        metavar="JSON",
        help="architecture, in our or the published names (default: what the file says or its shapes imply)",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of the stored weights"
    )
    parser.add_argument("--published", action="store_true", help="write a learngene for the published code")
    add_json_switch(parser)


def run(arguments: argparse.Namespace) -> None:
    _check_places(arguments)
    is_folder = arguments.file.is_dir()
    network = _learngene_in(arguments.file) if is_folder else read_predictor(arguments.file, arguments.config)
    _cast(network, getattr(torch, arguments.dtype))
    if arguments.published:
        _write_published(network, arguments.output)
    else:
        network.save_pretrained(arguments.output)
    record = {
        "source": str(arguments.file),
        "sha256": network.provenance["sha256"],
        "paraminit_type": network.paraminit_type,
        "config": network.config.to_dict(),
        "num_parameters": sum(parameter.numel() for parameter in network.parameters()),
        "dtype": arguments.dtype,
        "output": str(arguments.output),
    }
    if arguments.json:
        print(json.dumps(record, indent=2))
    else:
        print(f"{record['source']} (sha256 {record['sha256']})")
        print(f"  {record['paraminit_type']}, {record['num_parameters']:,} parameters, stored as {record['dtype']}")
        print(*(f"  {name:<20} {value}" for name, value in network.config.to_dict().items()), sep="\n")
        use = "" if arguments.published else f' Use with init="local-dir:{arguments.output}".'
        print(f"Written to {arguments.output}.{use}")


def _check_places(arguments: argparse.Namespace) -> None:
    source, output = arguments.file, arguments.output
    if arguments.published and output.is_dir():
        raise OutputError(f"--output {output} is a folder; with --published name a file, such as learngene.pth.")
    if not arguments.published and output.exists() and not output.is_dir():
        raise OutputError(f"--output {output} is a file; name a folder.")
    if not source.is_file() and not (arguments.published and source.is_dir()):
        more = " A folder is read with --published only." if source.is_dir() else ""
        raise PredictorNotFoundError(f"There is no checkpoint file {source}; check the path.{more}")
    if source.is_dir() and arguments.config is not None:
        raise CheckpointError(f"{source} has a config of its own; leave --config out.")


def _learngene_in(folder: Path) -> PretrainedPredictor[Any]:
    kind = read_predictor_config(folder / CONFIG_FILE)["paraminit_type"]
    if kind not in LEARNGENES:
        raise CheckpointError(f"{folder} holds a {kind}; --published writes {' and '.join(LEARNGENES)} only.")
    return LEARNGENES[kind].from_pretrained(folder)


def _write_published(network: PretrainedPredictor[Any], path: Path) -> None:
    if not isinstance(network, (LeTsGenerator, TLEG)):
        raise CheckpointError(
            f"--published writes {' and '.join(LEARNGENES)} only, and this is a {network.paraminit_type}."
        )
    with atomic_write(path) as temporary:
        torch.save({"model": network.to_published()}, temporary)


def _cast(network: PretrainedPredictor[Any], dtype: torch.dtype) -> None:
    network.to(dtype)
    if spoiled := [name for name, tensor in network.named_parameters() if not torch.isfinite(tensor).all()]:
        raise CheckpointError(
            f"{', '.join(spoiled)} hold values beyond the range of {dtype}; choose --dtype bfloat16 or float32."
        )

"""Write a timm model with learned initial weights to a folder.

The folder holds config.json and model.safetensors. timm opens it with
timm.create_model("local-dir:DIR", pretrained=True), with or without this package.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from hf_paraminit.cli.arguments import Subparsers, add_json_switch, json_object, seed, verb_parser
from hf_paraminit.cli.timm_models import add_model_arguments, build_model, host_errors
from hf_paraminit.errors import OutputError
from hf_paraminit.initializers.report import InitReport
from hf_paraminit.io.atomic import atomic_folder
from hf_paraminit.io.safetensors_file import write_tensors

EXAMPLES = """
paraminit init resnet50 --init ghn3 --output ./resnet50-ghn3
paraminit init vit_base_patch16_224 --init ghn3:tm8 --num-classes 10 --img-size 96 --output ./vit
paraminit init resnet18 --init hf-hub:me/my-ghn@v1.2 --seed 3 --json --output ./resnet18 > report.json
paraminit init convnext_tiny --init ghn3 --init-kwargs '{"predict_class_layers": false}' --output ./convnext
"""


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "init", __doc__, examples=EXAMPLES)
    add_model_arguments(parser)
    parser.add_argument(
        "--init",
        required=True,
        metavar="NAME",
        help="name, name:variant, hf-hub:ORG/REPO[@REVISION] or local-dir:PATH of the initializer",
    )
    parser.add_argument(
        "--init-kwargs", type=json_object, default={}, metavar="JSON", help="settings of the initializer"
    )
    parser.add_argument("--seed", type=seed, metavar="N", help="seed of everything random (default: 0)")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write")
    add_json_switch(parser)


def run(arguments: argparse.Namespace) -> None:
    if arguments.output.exists() and not arguments.output.is_dir():
        raise OutputError(f"--output {arguments.output} is a file; name a folder.")
    init_kwargs = dict(arguments.init_kwargs)
    if arguments.seed is not None:
        init_kwargs["seed"] = arguments.seed
    model = _build_seeded(arguments, init_kwargs)
    save_for_timm(model, arguments.output)
    report: InitReport = model._hf_paraminit  # type: ignore[assignment]
    if arguments.json:
        record = {"model": arguments.model, "output": str(arguments.output), "report": report.to_dict()}
        print(json.dumps(record, indent=2))
    else:
        print(f"{arguments.model}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters")
        print(report)
        print(f"Written to {arguments.output}")
        print(f'Open with timm.create_model("local-dir:{arguments.output}", pretrained=True)')


def _build_seeded(arguments: argparse.Namespace, init_kwargs: dict[str, Any]) -> nn.Module:
    """Build with timm's own draws seeded too, so that tensors outside the prediction are the same on every run."""
    start = init_kwargs.get("seed", 0)
    with torch.random.fork_rng():
        torch.manual_seed(start if isinstance(start, int) else 0)
        return build_model(arguments, init=arguments.init, init_kwargs=init_kwargs)


def save_for_timm(model: nn.Module, folder: Path) -> None:
    """Write a folder that `timm.create_model("local-dir:...", pretrained=True)` opens.

    Raises:
        OutputError: the folder could not be written; it is as before.
        ParamInitError: timm cannot describe this model, as for feature extractors.
    """
    with atomic_folder(folder) as staging:
        write_tensors(staging / "model.safetensors", _separate(model.state_dict()))
        with host_errors("timm could not write config.json for this model"):
            save_config_for_hf(model, str(staging / "config.json"))


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give tied tensors memory of their own: timm expects every name in the file, safetensors no shared memory."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone().contiguous() if address in seen else tensor.contiguous()
        seen.add(address)
    return separate

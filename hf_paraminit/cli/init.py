"""Write a timm or Transformers model with learned initial weights to a folder.

The folder holds config.json and model.safetensors, and opens with or without this package: a timm MODEL with
timm.create_model("local-dir:DIR", pretrained=True), a model from --config with from_pretrained("DIR") of its class.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
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
paraminit init --config ./my-vit/config.json --num-classes 10 --init ghn3 --output ./vit-ghn3
paraminit init --config org/swin --task masked-image-modeling --init ghn3 --output ./swin
paraminit init convnext_tiny --init ghn3 --init-kwargs '{"predict_class_layers": false}' --output ./convnext
"""


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "init", __doc__, examples=EXAMPLES)
    add_model_arguments(parser, optional=True)
    parser.add_argument(
        "--config",
        metavar="CONFIG",
        help="instead of MODEL: a Transformers configuration (a config.json, a folder with one, or a Hub repository), "
        "whose values --model-kwargs then changes",
    )
    parser.add_argument(
        "--task",
        metavar="TASK",
        help="with --config: which Auto class builds the model (default: image-classification)",
    )
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
    parser.set_defaults(usage_error=parser.error)


def run(arguments: argparse.Namespace) -> None:
    if (arguments.model is None) == (arguments.config is None):
        arguments.usage_error("name either a timm MODEL or a Transformers configuration with --config")
    if arguments.task is not None and arguments.config is None:
        arguments.usage_error("--task goes with --config")
    if arguments.output.exists() and not arguments.output.is_dir():
        raise OutputError(f"--output {arguments.output} is a file; name a folder.")
    init_kwargs = dict(arguments.init_kwargs)
    if arguments.seed is not None:
        init_kwargs["seed"] = arguments.seed
    model, way_to_open = (_write_timm if arguments.config is None else _write_transformers)(arguments, init_kwargs)
    name = arguments.model or type(model).__name__
    report: InitReport = model._hf_paraminit  # type: ignore[assignment]
    if arguments.json:
        record = {"model": name, "output": str(arguments.output), "report": report.to_dict()}
        print(json.dumps(record, indent=2))
    else:
        print(f"{name}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters")
        print(report)
        print(f"Written to {arguments.output}")
        print(f"Open with {way_to_open}")


def _write_timm(arguments: argparse.Namespace, init_kwargs: dict[str, Any]) -> tuple[nn.Module, str]:
    with _seeded(init_kwargs):
        model = build_model(arguments, init=arguments.init, init_kwargs=init_kwargs)
    save_for_timm(model, arguments.output)
    return model, f'timm.create_model("local-dir:{arguments.output}", pretrained=True)'


def _write_transformers(arguments: argparse.Namespace, init_kwargs: dict[str, Any]) -> tuple[nn.Module, str]:
    import hf_paraminit.cli.transformers_models as door  # loads Transformers, which timm models do not need

    class_name = door.auto_class_name(arguments.task or "image-classification")
    config = door.load_config(arguments.config, door.settings_of(arguments))
    with _seeded(init_kwargs):
        model = door.build_from_config(config, class_name, init=arguments.init, init_kwargs=init_kwargs)
    door.save_for_transformers(model, arguments.output, arguments.config)
    return model, f'transformers.{class_name}.from_pretrained("{arguments.output}")'


@contextmanager
def _seeded(init_kwargs: dict[str, Any]) -> Iterator[None]:
    """Seed the host's own draws too, so that tensors outside the prediction are the same on every run."""
    start = init_kwargs.get("seed", 0)
    with torch.random.fork_rng():
        torch.manual_seed(start if isinstance(start, int) else 0)
        yield


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

"""Show how a timm model starts: role, origin and scale of every tensor, and what is wrong with it.

Exit code 0 whatever was found; count the findings of severity "fault" in the JSON document to test for them.
"""

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from hf_paraminit.cli.arguments import Subparsers, json_object, positive, seed, verb_parser
from hf_paraminit.cli.timm_models import add_model_arguments, build_model
from hf_paraminit.evaluation.explain import explain
from hf_paraminit.evaluation.explanation import Explanation
from hf_paraminit.io.atomic import atomic_write
from hf_paraminit.plots.layer_scales import draw_layer_scales

EXAMPLES = """
paraminit explain resnet50
paraminit explain vit_tiny_patch16_224 --init ghn3 --plot vit.png
paraminit explain resnet18 --pretrained --json resnet18.json
paraminit explain vit_giant_patch14_224 --no-run
"""

PICTURES = (".png", ".svg", ".pdf")
PIXELS_PER_INCH = 150


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "explain", __doc__, examples=EXAMPLES)
    add_model_arguments(parser)
    parser.add_argument("--init", metavar="NAME", help="as `paraminit init` takes it (default: timm's own start)")
    parser.add_argument(
        "--init-kwargs", type=json_object, default={}, metavar="JSON", help="settings of the initializer"
    )
    parser.add_argument("--pretrained", action="store_true", help="load timm's trained weights first")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of everything random (default: 0)")
    parser.add_argument(
        "--input-size", type=positive, metavar="N", help="side of the images to run with (default: the model's own)"
    )
    # `run` itself is what the chosen verb does
    forward = parser.add_mutually_exclusive_group()
    forward.add_argument(
        "--run",
        dest="forward",
        action="store_true",
        default=None,
        help="run a copy of the model, however large it is (default: up to 134 million parameters)",
    )
    forward.add_argument("--no-run", dest="forward", action="store_false", help="look at the values only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the record to a file")
    parser.add_argument(
        "--plot", type=_picture, metavar="FILE", help=f"also draw the scale of each layer: {', '.join(PICTURES)}"
    )


def run(arguments: argparse.Namespace) -> None:
    init_kwargs = {} if arguments.init is None else {"seed": arguments.seed, **arguments.init_kwargs}
    with torch.random.fork_rng():
        torch.manual_seed(arguments.seed)
        model = build_model(
            arguments, init=arguments.init, init_kwargs=init_kwargs or None, pretrained=arguments.pretrained
        )
    explanation = explain(model, run=arguments.forward, input_size=arguments.input_size)
    if arguments.json is not None:
        with atomic_write(arguments.json) as path:
            path.write_text(json.dumps(explanation.to_dict(), indent=2) + "\n")
    if arguments.plot is not None:
        figure = _draw(explanation, arguments.model)
        with atomic_write(arguments.plot) as path:
            figure.savefig(path, format=arguments.plot.suffix[1:].lower(), dpi=PIXELS_PER_INCH)
    print(explanation)


def _draw(explanation: Explanation, title: str) -> Any:
    """Kernels in the model's order, and the layers that ran."""
    faulty = {finding.subject for finding in explanation.faults}
    kernels = [row for row in explanation.tensors if row.gain is not None]
    return draw_layer_scales(
        tensor_names=[row.name for row in kernels],
        gains=_finite(row.gain for row in kernels),
        is_faulty=[row.name in faulty for row in kernels],
        layer_names=[row.name for row in explanation.layers],
        activation_stds=_finite(row.output_std for row in explanation.layers),
        is_faulty_layer=[row.name in faulty for row in explanation.layers],
        title=f"{title}, faults: {len(explanation.faults)}",
    )


def _finite(values: Iterable[float | None]) -> list[float]:
    return [math.nan if value is None or math.isinf(value) else value for value in values]


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in PICTURES:
        raise argparse.ArgumentTypeError(f"{text!r} must end in one of {', '.join(PICTURES)}")
    return path

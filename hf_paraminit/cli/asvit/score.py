"""Score models without training: length distortion, NTK condition number, parameters and multiply-accumulates.

MODEL is any name that timm.create_model takes, or an As-ViT string. Scores compare only within one family, at one kind
of start and one radius.
"""

import argparse
import json
from typing import Any

import timm
import torch
from torch import nn

from hf_paraminit.asvit.architecture import Architecture
from hf_paraminit.asvit.complexity import complexity, default_input_size
from hf_paraminit.asvit.ntk import ntk_condition
from hf_paraminit.asvit.probe import NORMS, check_settings
from hf_paraminit.cli.arguments import Subparsers, add_json_switch, positive, seed, verb_parser
from hf_paraminit.cli.asvit.options import device
from hf_paraminit.cli.table import table
from hf_paraminit.cli.timm_models import host_errors

EXAMPLES = """
paraminit asvit score asvit_seed "4,2,2|2,1,2|2,1,2|2,1,2|16" --img-size 64 --reinit native
paraminit asvit score resnet18 vit_tiny_patch16_224 --norm keep --repeats 2
paraminit asvit score vit_tiny_patch16_224 --reinit ghn3 --curvature --json
"""


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "score", __doc__, examples=EXAMPLES)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="name of timm, or an As-ViT string")
    parser.add_argument("--img-size", type=positive, metavar="N", help="side of the images (default: the model's)")
    parser.add_argument("--norm", choices=NORMS, default="identity", help="norms in the length distortion")
    parser.add_argument(
        "--reinit", default="native", metavar="NAME", help="weights: native, none, or an initializer (default: native)"
    )
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="draws and circles (default: 5)")
    parser.add_argument("--radius", type=float, default=1.0, metavar="X", help="of the circle (default: 1)")
    parser.add_argument("--batch", type=positive, default=8, metavar="N", help="random images for ntk (default: 8)")
    parser.add_argument("--no-ntk", action="store_true", help="leave the NTK out, which takes longest")
    parser.add_argument("--curvature", action="store_true", help="also curvature and Gauss-map length")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of circles, draws, images (default: 0)")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="where to score (default: cpu)")
    add_json_switch(parser)


def run(arguments: argparse.Namespace) -> None:
    check_settings(arguments.norm, arguments.repeats)
    place = device(arguments.device)
    scores = {name: scores_of(name, arguments, place) for name in arguments.models}
    if arguments.json:
        print(json.dumps(scores, indent=2))
        return
    rows = [
        [
            name,
            f"{score['num_params'] / 1e6:.2f}",
            f"{score['macs'] / 1e9:.3f}",
            *(f"{value:.4g}" for value in numbers(score).values()),
        ]
        for name, score in scores.items()
    ]
    columns = next(iter(scores.values()))
    print(table(["model", "M params", "GMACs", *numbers(columns)], rows))


def scores_of(name: str, arguments: argparse.Namespace, place: torch.device) -> dict[str, Any]:
    """The scores of one model as JSON values."""
    model = build(name, arguments.img_size).to(place)
    size = default_input_size(model)
    size = size if arguments.img_size is None else (size[0], arguments.img_size, arguments.img_size)
    shared = {"reinit": arguments.reinit, "repeats": arguments.repeats, "seed": arguments.seed}
    found = complexity(
        model,
        input_size=size,
        norm=arguments.norm,
        radius=arguments.radius,
        curvature=arguments.curvature,
        **shared,
    ).to_dict()
    if not arguments.no_ntk:
        generator = torch.Generator().manual_seed(arguments.seed)
        images = torch.randn(arguments.batch, *size, generator=generator).to(place)
        found["ntk_condition"] = ntk_condition(model, images, **shared).condition
    return found


def numbers(score: dict[str, Any]) -> dict[str, float]:
    """Columns of the table."""
    names = {
        "length_distortion": "length distortion",
        "length_distortion_std": "std",
        "ntk_condition": "ntk condition",
        "curvature": "curvature",
        "gauss_length": "Gauss length",
    }
    return {title: score[name] for name, title in names.items() if score.get(name) is not None}


def build(name: str, img_size: int | None) -> nn.Module:
    """The model, told its image size where it has to know."""
    sizes: dict[str, Any] = {} if img_size is None else {"img_size": img_size}
    if "|" in name:
        return timm.create_model("asvit", arch=Architecture.parse(name).canonical, **sizes)
    with host_errors(f"timm could not build {name!r}"):
        try:
            return timm.create_model(name, **sizes)
        except TypeError:  # models that take any size have no such argument
            return timm.create_model(name)

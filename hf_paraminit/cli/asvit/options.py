"""What the parts of the verb share: how to score, on which images, and pictures beside the results."""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.data import create_dataset, create_transform
from torch import Tensor

from hf_paraminit.asvit.candidates import NTK_IMAGES, ScoreSettings
from hf_paraminit.cli.arguments import positive, seed
from hf_paraminit.cli.timm_models import host_errors
from hf_paraminit.errors import MissingDependencyError, ParamInitError
from hf_paraminit.io.atomic import atomic_write

logger = logging.getLogger("hf_paraminit")


def add_score_arguments(parser: argparse.ArgumentParser, *, default_seed: int) -> None:
    """Add the options that say how candidates are scored."""
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--rewards", type=rewards, default=("ntk", "exp"), metavar="A,B", help="ntk, exp or both (default: ntk,exp)"
    )
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="draws per candidate (default: 5)")
    parser.add_argument("--img-size", type=positive, default=224, metavar="N", help="side of images (default: 224)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder with images for ntk (default: generated)")
    parser.add_argument(
        "--seed", type=seed, default=default_seed, metavar="N", help=f"of the run (default: {default_seed})"
    )
    parser.add_argument("--init-std", type=float, default=0.02, metavar="X", help="of drawn weights (default: 0.02)")
    parser.add_argument("--radius", type=float, default=1.0, metavar="X", help="of the circle (default: 1)")
    parser.add_argument(
        "--reinit", default="native", metavar="NAME", help="weights to score: native, or an initializer as ghn3"
    )
    parser.add_argument("--device", default="cpu", metavar="NAME", help="where to score (default: cpu)")


def score_settings(arguments: argparse.Namespace) -> ScoreSettings:
    """The settings that the options ask for."""
    return ScoreSettings(
        rewards=arguments.rewards,
        repeats=arguments.repeats,
        img_size=arguments.img_size,
        seed=arguments.seed,
        radius=arguments.radius,
        init_std=arguments.init_std,
        reinit=arguments.reinit,
    )


def run_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What search and growth take beside their config: images, output folder, device."""
    return {
        "images": load_images(arguments.images, arguments.img_size),
        "output": arguments.output,
        "device": device(arguments.device),
    }


def rewards(text: str) -> tuple[str, ...]:
    """Type of an argument that names scores."""
    return tuple(word.strip() for word in text.split(","))


def device(name: str) -> torch.device:
    """A device that is there.

    Raises:
        ParamInitError: It is not.
    """
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        message = f"--device {name!r} cannot be used here: {str(error).splitlines()[0]}"
        raise ParamInitError(message) from error
    return found


def load_images(folder: Path | None, img_size: int) -> Tensor | None:
    """Images spread evenly over a folder, (16, 3, side, side) normalised as ImageNet; None without a folder.

    Raises:
        ParamInitError: The folder cannot be read as images, or holds fewer than two.
    """
    if folder is None:
        return None
    with host_errors(f"Cannot read images from {folder}", OSError):
        dataset = create_dataset("", root=str(folder), transform=create_transform((3, img_size, img_size)))
        count = len(dataset)
        if count < 2:
            raise ParamInitError(f"{folder} holds {count} images; the kernel needs at least two.")
        indices = torch.linspace(0, count - 1, min(NTK_IMAGES, count)).long().tolist()
        return torch.stack([dataset[index][0] for index in indices])


def save_picture(draw: Callable[..., Any], path: Path, *args: Any, **kwargs: Any) -> None:
    """Write what `draw` draws; without matplotlib, which is optional, say so and go on."""
    try:
        figure = draw(*args, **kwargs)
    except MissingDependencyError as error:
        logger.warning("No picture: %s", error)
        return
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."), dpi=150)

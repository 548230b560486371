"""Evaluate a learngene (LeTs, stage 2): Des-Nets of several sizes against other starts, fine-tuned on labels.

Every size is trained from the learngene, from the same learngene with its transformations drawn anew (the ablation),
from the learngene's values shuffled inside each tensor (the control: its scale without its structure), from weight
selection out of the Aux-Net, from scaled random values, and from timm's default. DIR gets the tables and curves of
`paraminit compare`; the same command goes on where an interrupted one stopped. With --head-start only the aim of the
method is measured, in a third of the time: all starts after one epoch against the default and scaled random values
after ten, each at the rate that is best for it then; DIR gets head_start.json.
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from hf_paraminit.cli.arguments import Subparsers, add_json_switch, positive, verb_parser
from hf_paraminit.cli.compare import save_curves, text_of
from hf_paraminit.cli.evaluate.head_start import HeadStartExperiment
from hf_paraminit.errors import InitializerConfigError
from hf_paraminit.evaluation.comparison import Comparison, compare_inits
from hf_paraminit.evaluation.experiment import Initialization
from hf_paraminit.evaluation.nets import Net
from hf_paraminit.evaluation.summary import DEFAULT
from hf_paraminit.evaluation.tasks import load_task
from hf_paraminit.initializers.learngene_lets import LearngeneLeTs
from hf_paraminit.io.atomic import atomic_folder, atomic_write
from hf_paraminit.lets.ablation import aux_net_state, fresh_transforms, scaled_random
from hf_paraminit.lets.generator import LeTsGenerator
from hf_paraminit.training.processes import is_launched, is_main_process, launched_state

EXAMPLES = """
paraminit evaluate learngene-LeTs --output lets-digits
paraminit evaluate learngene-LeTs --source runs/lets/predictor --sizes 64x4,128x6 --seeds 2 --no-tuning --output quick
paraminit evaluate learngene-LeTs --head-start --sizes 64x2,64x4,128x2,192x2 --output lets-head-start
torchrun --nproc_per_node 2 -m hf_paraminit evaluate learngene-LeTs --output lets-digits
"""

LEARNGENE, FRESH, SHUFFLED = "LeTs", "fresh F and G", "shuffled LeTs"
SELECTION, SCALED = "weight-selection", "scaled random"
DEFAULT_SIZES = "64x3,64x6,128x3,128x6"
FRESH_SEED = 0  # of the transformations that replace the trained ones
LEARNING_RATE = 1e-3  # before tuning; of the ViTs of the benchmark

Starts = dict[str, tuple[Any, dict[str, Any]]]  # values of init= and their settings, by label


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "learngene-LeTs", __doc__, examples=EXAMPLES)
    parser.add_argument("--source", metavar="PLACE", help="folder, file or hf-hub:org/repo (default: the built-in)")
    parser.add_argument(
        "--sizes", type=_sizes, default=_sizes(DEFAULT_SIZES), metavar="WxL,...",
        help=f"width and depth of the Des-Nets (default: {DEFAULT_SIZES})",
    )  # fmt: skip
    parser.add_argument("--data", default="digits", metavar="DATA", help="as `paraminit compare` (default: digits)")
    parser.add_argument("--seeds", type=positive, default=4, metavar="N", help="seeds per cell (default: 4)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=positive, default=150, metavar="N", help="optimiser steps (default: 150)")
    length.add_argument("--head-start", action="store_true", help="one epoch against ten from scratch, nothing else")
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help="images per step (default: 64)")
    parser.add_argument("--no-tuning", action="store_true", help="one learning rate for all")
    parser.add_argument("--validation", action="store_true", help="report on validation images")
    parser.add_argument("--processes", type=positive, metavar="N", help="worker processes (default: one per core)")
    parser.add_argument(
        "--output", type=Path, default=Path("lets-evaluation"), metavar="DIR", help="(default: lets-evaluation)"
    )
    add_json_switch(parser)


def run(arguments: argparse.Namespace) -> None:
    generator = LearngeneLeTs(source=arguments.source).predictor
    nets = [_des_net(generator, width, depth) for width, depth in arguments.sizes]
    inits = _starts(generator, arguments.output / "starts")
    if arguments.head_start:
        _measure_head_start(arguments, generator, nets, inits)
    else:
        _compare(arguments, generator, nets, inits)


def _compare(arguments: argparse.Namespace, generator: LeTsGenerator, nets: Sequence[Net], inits: Starts) -> None:
    comparison = compare_inits(
        nets,
        {label: init for label, (init, _) in inits.items()},
        init_kwargs={label: settings for label, (_, settings) in inits.items()},
        data=arguments.data,
        seeds=arguments.seeds,
        output=arguments.output,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        img_size=generator.config.img_size[0],
        tune=not arguments.no_tuning,
        block="validation" if arguments.validation else "test",
        processes=arguments.processes,
        command=f"paraminit evaluate learngene-LeTs --output {arguments.output}",
    )
    if not is_main_process():
        return
    save_curves(comparison, arguments.output / "curves.png")
    if arguments.json:
        print(json.dumps(comparison.to_dict(), indent=2))
    else:
        print(text_of(comparison))
        print(f"\n{_verdict(comparison)}")
        print(f"Written to {arguments.output}; open {arguments.output / 'index.html'}.")


def _measure_head_start(
    arguments: argparse.Namespace, generator: LeTsGenerator, nets: Sequence[Net], inits: Starts
) -> None:
    """Measure, write `head_start.json`, and print."""
    starts = {DEFAULT: Initialization(label=DEFAULT)} | {
        label: Initialization(label=label, init=init, settings=settings) for label, (init, settings) in inits.items()
    }
    experiment = HeadStartExperiment(
        task=load_task(arguments.data, size=generator.config.img_size[0], batch_size=arguments.batch_size),
        nets={net.name: net for net in nets},
        starts=starts,
        learngene=LEARNGENE,
        scratch=(DEFAULT, SCALED),
        seeds=arguments.seeds,
        batch_size=arguments.batch_size,
        block="validation" if arguments.validation else "test",
        is_tuned=not arguments.no_tuning,
    )
    found = experiment.run(arguments.output, processes=arguments.processes)
    if not is_main_process():
        return
    file = arguments.output / "head_start.json"
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(found.to_dict(), indent=1) + "\n", encoding="utf-8")
    if arguments.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        print(f"{found.text(LEARNGENE)}\nWritten to {file}.")


def _des_net(generator: LeTsGenerator, width: int, depth: int) -> Net:
    """A ViT of timm of the learngene's kind.

    Raises:
        InitializerConfigError: A width that the learngene cannot make.
    """
    config = generator.config
    if width % config.head_dim or not config.embed_dim <= width <= config.aux_dim:
        widths = range(config.embed_dim, config.aux_dim + 1, config.head_dim)
        raise InitializerConfigError(
            f"--sizes: this learngene makes no net of width {width}; expected one of {', '.join(map(str, widths))}."
        )
    return Net(
        name=f"{width}x{depth}",
        architecture="vit_tiny_patch16_224",
        settings={
            "img_size": config.img_size[0],
            "patch_size": config.patch_size[0],
            "embed_dim": width,
            "depth": depth,
            "num_heads": width // config.head_dim,
            "class_token": config.class_token,
            "global_pool": "token" if config.class_token else "avg",
        },
        learning_rate=LEARNING_RATE,
        family="attention",
    )


def _starts(generator: LeTsGenerator, folder: Path) -> Starts:
    """Every start as a value of `init=` with its settings; those made of the learngene lie in files.

    Their folder's name says of which learngene, so that finished cells of another are not taken for this one's.
    """
    place = folder / str(generator.provenance["sha256"])[:12]
    with launched_state().main_process_first() if is_launched() else nullcontext():
        if not place.exists():
            with atomic_folder(place) as staging:
                generator.save_pretrained(staging / "learngene")
                fresh_transforms(generator, seed=FRESH_SEED).save_pretrained(staging / "fresh")
                save_file(aux_net_state(generator), staging / "aux_net.safetensors")
    return {
        LEARNGENE: ("learngene-LeTs", {"source": str(place / "learngene")}),
        FRESH: ("learngene-LeTs", {"source": str(place / "fresh")}),
        SHUFFLED: ("control:permuted", {"of": {"init": "learngene-LeTs", "source": str(place / "learngene")}}),
        SELECTION: ("weight-selection", {"donor": str(place / "aux_net.safetensors")}),
        SCALED: (scaled_random, {}),
    }


def _verdict(comparison: Comparison) -> str:
    """Early accuracy from the learngene against late accuracy from scratch, means over the sizes."""
    rows = {(row.net, row.init): row.curve for row in comparison.summary.rows}
    nets = [net for net in comparison.summary.nets if (net, LEARNGENE) in rows and (net, SCALED) in rows]
    if not nets:
        return "No size was finished from both starts."
    steps = sorted(rows[nets[0], LEARNGENE])
    early = next((step for step in steps if step >= 16), steps[-1])
    means = {
        init: sum(rows[net, init][step] for net in nets) / len(nets)
        for init, step in ((LEARNGENE, early), (SCALED, steps[-1]))
    }
    return (
        f"Mean accuracy over {len(nets)} sizes: {means[LEARNGENE]:.1f} % after {early} steps from the learngene, "
        f"{means[SCALED]:.1f} % after {steps[-1]} steps from scaled random values."
    )


def _sizes(text: str) -> list[tuple[int, int]]:
    """Type of an argument that holds widths and depths."""
    found = []
    for word in text.split(","):
        width, _, depth = word.strip().partition("x")
        if not (width.isdecimal() and depth.isdecimal() and int(width) and int(depth)):
            raise argparse.ArgumentTypeError(f"{word!r} is no size such as 128x6 (width x depth)")
        found.append((int(width), int(depth)))
    if len(set(found)) != len(found):
        raise argparse.ArgumentTypeError(f"{text!r} names a size twice")
    return found

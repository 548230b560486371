"""Options of the one training loop, which the parts of `paraminit train` share."""

import argparse
from typing import Any

from hf_paraminit.cli.arguments import positive, seed


def add_loop_options(parser: argparse.ArgumentParser, *, warmup_steps: int = 0) -> None:
    """Add what `loop_settings` reads."""
    loop = parser.add_argument_group("run")
    loop.add_argument("--stop-after", type=positive, metavar="N", help="stop at this step of the schedule")
    for option, default, meaning in (
        ("--gradient-accumulation", 1, "batches per process and step"),
        ("--log-every", 20, "steps between records in metrics.jsonl"),
        ("--checkpoint-every", 500, "steps between checkpoints"),
    ):
        loop.add_argument(option, type=positive, default=default, metavar="N", help=f"{meaning} (default: {default})")
    loop.add_argument("--warmup-steps", type=positive, default=max(1, warmup_steps), metavar="N",
                      help=f"steps of warm-up of the default schedule (default: {max(1, warmup_steps)})")  # fmt: skip
    loop.add_argument("--gradient-clip", type=float, default=5.0, metavar="X", help="most gradient norm (default: 5)")
    loop.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), help="arithmetic (default: 32 bit)")
    loop.add_argument("--trackers", nargs="+", default=(), metavar="NAME",
                      help="Accelerate's trackers that get the records too, as tensorboard")  # fmt: skip
    loop.add_argument("--seed", type=seed, default=0, metavar="N", help="of all random draws (default: 0)")
    loop.add_argument("--cpu", action="store_true", help="stay on the CPU even when there is a GPU")


def loop_settings(arguments: argparse.Namespace, *, mixed_precision: str = "no") -> dict[str, Any]:
    """Arguments of `TrainingConfig`.

    Args:
        arguments: What was parsed.
        mixed_precision: Used where none was asked for.
    """
    names = ("stop_after", "gradient_accumulation", "log_every", "checkpoint_every", "warmup_steps", "gradient_clip")
    settings = {name: getattr(arguments, name) for name in (*names, "trackers", "seed", "cpu")}
    return settings | {"mixed_precision": arguments.mixed_precision or mixed_precision}

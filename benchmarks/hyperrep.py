"""What drawing networks costs beside creating them, and what a batch of draws costs beside one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import timm
import torch
from torch import nn

from benchmarks.measure import Record, interleaved, parser, prepare, report, save, verdict
from hf_paraminit.hyperrep.autoencoder import SequenceAutoEncoder
from hf_paraminit.hyperrep.config import SequenceConfig
from hf_paraminit.hyperrep.model import HyperRepresentation
from hf_paraminit.hyperrep.standardize import Standardization
from hf_paraminit.hyperrep.tokens import TokenLayout
from hf_paraminit.hyperrep.zoo_nets import ZooCNN

BATCH = 32
MOST_CREATIONS, MOST_DRAWS = 1.0, 8.0

Case = tuple[Callable[[], nn.Module], SequenceConfig, int]

# What creates a network, the auto-encoder, and the halo that it is decoded with (0 tokens: the whole at once).
CASES: dict[str, Case] = {
    "cnn-tiny": (
        partial(ZooCNN, "cnn-tiny"),
        SequenceConfig(token_dim=73, model_dim=64, latent_dim=32, position_axes=4, projection_dim=0),
        0,
    ),
    "resnet18": (
        partial(timm.create_model, "resnet18", num_classes=10),
        SequenceConfig(
            token_dim=1152, model_dim=32, num_heads=2, num_layers=1, window=128, position_axes=4, projection_dim=0
        ),
        8,
    ),
}


def representation(create: Callable[[], nn.Module], config: SequenceConfig, halo: int) -> HyperRepresentation:
    """An untrained one with two anchors; values do not change what decoding costs."""
    states = [create().state_dict() for _ in range(2)]
    layout = TokenLayout.from_module(create(), config.token_dim)
    window = config.window if halo else 0
    return HyperRepresentation.of_zoo(
        SequenceAutoEncoder(config).eval(), layout, Standardization.fit(layout, states), states, [0.5, 0.5],
        window=window, halo=halo,
    )  # fmt: skip


def time_case(name: str, *, repeats: int) -> Record:
    """Time creation, one draw and a batch of draws in turns."""
    create, config, halo = CASES[name]
    made = representation(create, config, halo)
    created, drawn, batch = interleaved(
        [create, lambda: made.sample(1, seed=1), lambda: made.sample(BATCH, seed=1)], repeats=repeats
    )
    return {
        "model": name,
        "M parameters": made.layout.num_values / 1e6,
        "create ms": 1e3 * created,
        "draw ms": 1e3 * drawn,
        "draw / create": drawn / created,
        f"{BATCH} draws / draw": batch / drawn,
    }


def main() -> None:
    arguments = parser(__doc__ or "").parse_args()
    prepare(arguments)
    torch.manual_seed(0)
    names = ["cnn-tiny"] if arguments.quick else list(CASES)
    records = [time_case(name, repeats=arguments.repeats) for name in names]
    report("Drawing networks", records)
    if not arguments.quick:
        ratio = next(record["draw / create"] for record in records if record["model"] == "resnet18")
        print(f"\nresnet18: a draw at most {MOST_CREATIONS} creations: {verdict(is_met=ratio <= MOST_CREATIONS)}")
        for record in records:
            is_met = record[f"{BATCH} draws / draw"] <= MOST_DRAWS
            print(f"{record['model']}: {BATCH} draws at most {MOST_DRAWS} times one: {verdict(is_met=is_met)}")
    save(arguments, {"draws": records})


if __name__ == "__main__":
    main()

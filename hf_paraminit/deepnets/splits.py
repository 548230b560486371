"""The splits of DeepNets-1M, and the record that describes a network in its files (arXiv 2110.13100, table 1)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hf_paraminit.deepnets.genotype import ArchitectureError
from hf_paraminit.deepnets.sampling import MAX_CANDIDATES, ArchitectureSpace, sample_candidate
from hf_paraminit.deepnets.wiring import Wiring, wire

# What a file says of a network: the keys below, "genotype", "num_nodes", "num_params" and, outside training, "C".
Record = dict[str, Any]

STRUCTURE_KEYS = (
    "stem_type",
    "stem_pool",
    "norm",
    "preproc",
    "fc_layers",
    "glob_avg",
    "genotype",
    "n_cells",
    "ks",
    "C_mult",
)
IMAGE_SIZES = {"cifar10": False, "imagenet": True}  # key of "num_params" -> is_imagenet_input
# Parameters are counted at this width, with this classifier.
COUNTING = {"C": 32, "fc_dim": 256, "num_classes": 10}

CHANNELS = (32, 48, 64, 80, 96, 112, 128)
CLASSIFIER_WIDTHS = (64, 128, 192, 256, 320, 384, 448, 512)
LARGE_CONVOLUTIONS = frozenset({"conv_5x5", "conv_7x7"})


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split.

    Attributes:
        name: As in the files.
        num_networks: As published; that of `search` is inferred from published indices.
        file: Middle part of the file's name: deepnets1m_FILE.hdf5.
        seed: Of the published generator.
        stream: Splits with the same seed and stream hold the same networks. (With its seeds alone, the published
            generator draws the same networks for training and test.)
        space: Ranges that architectures are drawn from.
        width_factors: Factor on the stored width for 32-pixel and for 224-pixel images.
    """

    name: str
    num_networks: int
    file: str = "eval"
    seed: int = 1
    stream: int
    space: ArchitectureSpace = field(default_factory=ArchitectureSpace)
    width_factors: tuple[int, int] = (1, 1)

    @property
    def has_stored_width(self) -> bool:
        """Whether the files fix the width; in training it is drawn whenever a network is loaded."""
        return self.file != "train"


_TRAIN = ArchitectureSpace()

SPLITS: Mapping[str, Split] = {
    split.name: split
    for split in (
        Split(name="train", num_networks=1_000_000, file="train", stream=0),
        Split(name="val", num_networks=500, seed=0, stream=1),
        Split(name="test", num_networks=500, stream=2),
        Split(name="wide", num_networks=100, stream=2, width_factors=(4, 2)),
        Split(
            name="deep",
            num_networks=100,
            stream=3,
            space=replace(_TRAIN, min_cells=10, max_cells=36, deep_thresholds=(18,), max_parameters=100_000_000),
        ),
        Split(
            name="dense",
            num_networks=100,
            stream=4,
            space=replace(_TRAIN, min_steps=2, max_steps=10, max_steps_deep=6, max_parameters=100_000_000),
        ),
        Split(name="bnfree", num_networks=100, stream=5, space=replace(_TRAIN, norm="never")),
        Split(
            name="search",
            num_networks=100_000,
            file="search",
            stream=6,
            space=replace(
                _TRAIN,
                min_cells=6,
                max_cells=20,
                max_steps=6,
                max_steps_deep=3,
                deep_thresholds=(10,),
                norm="always",
                preproc_share=0.8,
            ),
        ),
    )
}


def find_split(name: str) -> Split:
    """Return the split of this name.

    Raises:
        ArchitectureError: There is none.
    """
    if name not in SPLITS:
        close = difflib.get_close_matches(name, SPLITS)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(SPLITS)}, and predefined."
        raise ArchitectureError(f"DeepNets-1M has no split {name!r}; {hint}")
    return SPLITS[name]


def draw_record(split: Split, index: int, *, seed: int | None = None) -> tuple[Record, Wiring]:
    """Draw one network of a split; the result depends on the seed and the index alone.

    Args:
        split: Where it belongs.
        index: Its number.
        seed: Instead of the split's own.

    Returns:
        Its record, and the wiring of the version for 32-pixel images.

    Raises:
        ArchitectureError: None of many candidates is small enough.
    """
    rng = np.random.default_rng([split.seed if seed is None else seed, split.stream, index])
    for _ in range(MAX_CANDIDATES):
        candidate = sample_candidate(rng, split.space)
        if candidate is None:
            continue
        record: Record = {key: candidate[key] for key in STRUCTURE_KEYS}
        counted = {
            size: wire({**network_arguments(record, is_imagenet_input=is_imagenet), **COUNTING})
            for size, is_imagenet in IMAGE_SIZES.items()
        }
        num_parameters = {size: wiring.num_parameters for size, wiring in counted.items()}
        if max(num_parameters.values()) > split.space.max_parameters:
            continue
        record |= {
            "fc_dim": COUNTING["fc_dim"],
            "num_nodes": len(counted["cifar10"].nodes),
            "num_params": num_parameters,
        }
        if split.has_stored_width:
            record["C"] = draw_widths(record, rng, is_imagenet_input=False)["C"]
        return record, counted["cifar10"]
    raise ArchitectureError(
        f"None of {MAX_CANDIDATES} candidates for network {index} of {split.name!r} has at most "
        f"{split.space.max_parameters} parameters."
    )


def network_arguments(record: Mapping[str, Any], *, is_imagenet_input: bool) -> dict[str, Any]:
    """Return what a record says about the constructor arguments of `DeepNetsNetwork`: all but widths and classes."""
    return {key: record[key] for key in STRUCTURE_KEYS} | {"is_imagenet_input": is_imagenet_input}


def draw_widths(
    record: Mapping[str, Any], rng: np.random.Generator, *, is_imagenet_input: bool, wider: bool = False
) -> dict[str, int]:
    """Draw widths that keep a training network affordable (arXiv 2110.13100, appendix A; 2303.04143 for `wider`).

    Args:
        record: Of the network.
        rng: Decides.
        is_imagenet_input: Whether its images have 224 pixels.
        wider: Follow the rule of GHN-3 for ImageNet, which lets more networks be wide and varies the first stride.

    Returns:
        "C", "fc_dim" and "imagenet_stride" of `DeepNetsNetwork`.
    """
    num_cells = record["n_cells"]
    size = "imagenet" if is_imagenet_input and not wider else "cifar10"
    millions = record["num_params"][size] / 1e6
    connections = [*record["genotype"]["normal"], *record["genotype"]["reduce"]]
    is_heavy = any(operation in LARGE_CONVOLUTIONS for operation, _ in connections)
    num_classifier_widths = 4
    if millions > (2.0 if wider else 0.8) or not record["glob_avg"] or is_heavy or num_cells > (14 if wider else 12):
        num_widths = 1
    elif millions > 0.4 or num_cells > 10:
        num_widths = 4 if wider else 2
    elif millions > 0.2 or num_cells > 8:
        num_widths = 5 if wider else 3
    else:
        num_widths, num_classifier_widths = len(CHANNELS), len(CLASSIFIER_WIDTHS)
    C = _first(CHANNELS, num_widths, rng)
    if C > 64:
        num_classifier_widths = 4
    is_light = millions <= 0.2 and num_cells <= 8 and not is_heavy
    shrinks_late = record["glob_avg"] and record["stem_type"] == 0 and record["stem_pool"]
    can_be_fine = wider and is_imagenet_input and shrinks_late and is_light
    return {
        "C": C,
        "fc_dim": _first(CLASSIFIER_WIDTHS, num_classifier_widths, rng),
        "imagenet_stride": _first((2, 4), 2, rng) if can_be_fine else 4,
    }


def _first(choices: tuple[int, ...], count: int, rng: np.random.Generator) -> int:
    """One of the first `count` choices."""
    return choices[int(rng.integers(count))]

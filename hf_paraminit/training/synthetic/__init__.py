"""Training images made by formula: labelled, unlimited, and needing no download."""

from hf_paraminit.training.synthetic.mixture import (
    CHANNEL_MEAN,
    CHANNEL_STD,
    SPLITS,
    SyntheticImages,
    SyntheticSpec,
    normalize,
)

__all__ = ["CHANNEL_MEAN", "CHANNEL_STD", "SPLITS", "SyntheticImages", "SyntheticSpec", "normalize"]

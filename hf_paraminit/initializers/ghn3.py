"""GHN-3: a graph transformer that predicts all weights of a network (arXiv 2303.04143)."""

from hf_paraminit.initializers.graph_hypernetwork import (
    BUILTIN_FOLDER,
    HUB_REPOSITORY,
    GraphHypernetworkInitializer,
    PredictorFile,
)
from hf_paraminit.initializers.registry import register_initializer


@register_initializer(
    "ghn3",
    summary="graph transformer that reads the model's graph and predicts its weights",
    paper="2303.04143",
    aliases=("ghn-3",),
)
class GHN3(GraphHypernetworkInitializer):
    """Two predictors ship with the package; the others are the published checkpoints on the Hub.

    `builtin` predicts how large each tensor starts, for orthogonal noise; `builtin-values` predicts the values
    themselves, as published, and is what the papers' experiments can be tried with offline.
    """

    variants = ("builtin", "builtin-values", "tm8", "sm8", "lm8", "xlm16")
    files = {  # noqa: RUF012 (read only)
        "builtin": PredictorFile(folder=BUILTIN_FOLDER / "ghn3"),
        "builtin-values": PredictorFile(folder=BUILTIN_FOLDER / "ghn3-values"),
        "tm8": PredictorFile(repository=HUB_REPOSITORY, filename="ghn3tm8.pt"),
        "sm8": PredictorFile(repository=HUB_REPOSITORY, filename="ghn3sm8.pt"),
        "lm8": PredictorFile(repository=HUB_REPOSITORY, filename="ghn3lm8.pt"),
        "xlm16": PredictorFile(repository=HUB_REPOSITORY, filename="ghn3xlm16.pt"),
    }

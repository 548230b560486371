"""GHN-2: a gated graph network that predicts all weights of a network (arXiv 2110.13100)."""

from hf_paraminit.initializers.graph_hypernetwork import (
    HUB_REPOSITORY,
    GraphHypernetworkInitializer,
    PredictorFile,
)
from hf_paraminit.initializers.registry import register_initializer


@register_initializer(
    "ghn2",
    summary="gated graph network that reads the model's graph and predicts its weights",
    paper="2110.13100",
    aliases=("ghn-2", "ppuda"),
)
class GHN2(GraphHypernetworkInitializer):
    """`imagenet` is published on the Hub; `cifar10` came with the source code of the paper only."""

    variants = ("imagenet", "cifar10")
    files = {"imagenet": PredictorFile(repository=HUB_REPOSITORY, filename="ghn2.pt")}  # noqa: RUF012 (read only)

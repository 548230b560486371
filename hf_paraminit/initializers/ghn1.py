"""GHN-1: the gated graph network without virtual edges and weight norm (arXiv 1810.05749, as in arXiv 2110.13100)."""

from hf_paraminit.initializers.graph_hypernetwork import GraphHypernetworkInitializer
from hf_paraminit.initializers.registry import register_initializer


@register_initializer(
    "ghn1", summary="GHN-2 without virtual edges, weight norm and final norm", paper="1810.05749", aliases=("ghn-1",)
)
class GHN1(GraphHypernetworkInitializer):
    """Its checkpoints came with the source code of arXiv 2110.13100 only."""

    variants = ("imagenet", "cifar10")

"""The baseline of GHN-2 that predicts each node's weights from the node alone (arXiv 2110.13100, section 4)."""

from hf_paraminit.initializers.graph_hypernetwork import GraphHypernetworkInitializer
from hf_paraminit.initializers.registry import register_initializer


@register_initializer("ghn-mlp", summary="GHN-2's baseline that ignores the edges", paper="2110.13100")
class GHNMLP(GraphHypernetworkInitializer):
    """Its checkpoint came with the source code of arXiv 2110.13100 only."""

    variants = ("cifar10",)

"""Names of the published As-ViT code and ours: the trunk is the same, the classifier follows timm."""

from collections.abc import Mapping

from torch import Tensor

# Published prefix -> ours.
HEADS = {"head.0.": "pre_logits.fc.", "head.2.": "head."}
WRAPPERS = ("state_dict", "model")
PARALLEL = "module."
COUNTERS = ("total_ops", "total_params")  # what the published profiler leaves in a model that it has counted


def timm_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under timm's names, from the published ones or from timm's own, bare or inside a checkpoint."""
    for wrapper in WRAPPERS:
        state_dict = state_dict.get(wrapper, state_dict)  # type: ignore[assignment]
    bare = {name.removeprefix(PARALLEL): value for name, value in state_dict.items()}
    return {_renamed(name, HEADS): value for name, value in bare.items() if name.split(".")[-1] not in COUNTERS}


def published_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of ours under the names of the published code."""
    return {_renamed(name, {ours: theirs for theirs, ours in HEADS.items()}): v for name, v in state_dict.items()}


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name

"""What a network's penultimate features are worth before any training."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from hf_paraminit.errors import MissingDependencyError
from hf_paraminit.evaluation.learning_curve import LabelledImages

REGULARIZATION = 0.1  # C of the logistic regression
MAX_ITERATIONS = 300


class FeatureReader:
    """Context in which a network's forward passes leave the input of its classifier in `features` (B, D).

    Attributes:
        features: Of the last forward pass; None if the network has no classifier that could be found.
    """

    def __init__(self, network: nn.Module) -> None:
        self.features: Tensor | None = None
        self._classifier = find_classifier(network)

    def __enter__(self) -> Self:
        self._handles = []
        if self._classifier is not None:
            self._handles.append(self._classifier.register_forward_pre_hook(self._keep))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.features = args[0].detach().flatten(1).float()


def find_classifier(network: nn.Module) -> nn.Module | None:
    """The layer that turns features into class scores: what timm declares, else the last linear layer."""
    declare: Any = getattr(network, "get_classifier", lambda: None)
    declared = declare()
    if isinstance(declared, nn.Linear):
        return declared
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


def feature_accuracy(network: nn.Module, train: LabelledImages, test: LabelledImages) -> dict[str, float]:
    """Accuracy of two simple classifiers on standardised penultimate features, in percent.

    Args:
        network: In any mode; read in eval mode, with whatever batch-norm statistics it has.
        train: Images and labels that the classifiers learn from.
        test: Images and labels that they are tested on.

    Returns:
        `nearest_mean` and `linear` (L2 logistic regression, C = 0.1); nothing if features cannot be read or are not
        finite.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    with FeatureReader(network) as reader:
        blocks = [_read(network, reader, images) for images, _ in (train, test)]
    if any(block is None or not block.isfinite().all() for block in blocks):
        return {}
    return simple_accuracies((blocks[0], train[1]), (blocks[1], test[1]))  # type: ignore[arg-type]


def pixel_accuracy(train: LabelledImages, test: LabelledImages) -> dict[str, float]:
    """The same on raw pixels, and of the nearest neighbour: what a network has to beat before it counts as good."""
    neighbors = _sklearn("neighbors")
    flat = [(images.flatten(1), labels) for images, labels in (train, test)]
    nearest = neighbors.KNeighborsClassifier(1).fit(flat[0][0].numpy(), flat[0][1].numpy())
    score = 100 * nearest.score(flat[1][0].numpy(), flat[1][1].numpy())
    return {"nearest_neighbour": float(score), **simple_accuracies(*flat)}


def simple_accuracies(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Nearest class mean and logistic regression on vectors (N, D), in percent."""
    linear_model = _sklearn("linear_model")
    mean, std = train[0].mean(0), train[0].std(0).clamp_min(1e-6)
    known, unknown = (train[0] - mean) / std, (test[0] - mean) / std
    classes = train[1].unique()
    centres = torch.stack([known[train[1] == label].mean(0) for label in classes])
    nearest = classes[torch.cdist(unknown, centres).argmin(1)]
    regression = linear_model.LogisticRegression(C=REGULARIZATION, max_iter=MAX_ITERATIONS)
    regression.fit(known.numpy(), train[1].numpy())
    return {
        "nearest_mean": 100 * (nearest == test[1]).float().mean().item(),
        "linear": float(100 * regression.score(unknown.numpy(), test[1].numpy())),
    }


@torch.no_grad()
def _read(network: nn.Module, reader: FeatureReader, images: Tensor) -> Tensor | None:
    network.eval()
    parts = []
    for part in images.split(250):
        network(part)
        if reader.features is None:
            return None
        parts.append(reader.features)
    return torch.cat(parts)


def _sklearn(module: str) -> Any:
    try:
        import sklearn.linear_model
        import sklearn.neighbors
    except ImportError as error:
        raise MissingDependencyError(
            'This needs scikit-learn, which is not installed: pip install "hf_paraminit[data]".'
        ) from error
    return getattr(sklearn, module)

"""An empty figure in the style of the package's pictures of evaluations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_paraminit.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any kind of colour vision; markers say the same again.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d", "#882255")
MARKERS = ("o", "^", "s", "D", "v", "x", "P", "*")


def new_figure(width: float, height: float, *, title: str) -> tuple[Figure, Axes]:
    """One panel of so many inches, without the upper and right frame.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            'Pictures need matplotlib, which is not installed: pip install "hf_paraminit[plots]".'
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes

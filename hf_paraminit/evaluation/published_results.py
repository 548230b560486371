"""The published results of GHN-3 by network, read from its JSON lines (arXiv 2303.04143, table 1 and appendix)."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path

from hf_paraminit.errors import TrainingConfigError

# What the columns say; accuracies are top-1 on ImageNet in percent.
COLUMNS = {
    "ghn2": "GHN-2, no training",
    "ghn3-t": "GHN-3-T, no training",
    "ghn3": "GHN-3-XL, no training",
    "ghn3-sgd1ep": "GHN-3-XL, 1 epoch",
    "ghn3-sgd10ep": "GHN-3-XL, 10 epochs",
    "randinit-sgd1ep": "random, 1 epoch",
    "randinit-sota": "full training",
}


def read_published(path: Path) -> dict[str, dict[str, float]]:
    """Read one JSON object per line, `{"network": {"column": "value"}}`.

    Returns:
        Numbers by network and column; accuracies, norms of parameters (`...-paramnorm`) and of gradients.

    Raises:
        TrainingConfigError: The file cannot be read as such.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        found = {
            network: {column: float(value) for column, value in columns.items()}
            for line in lines
            for network, columns in line.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TrainingConfigError(
            f"Cannot read published results from {path}: {type(error).__name__}: {error}. Expected one JSON object per "
            'line, {"resnet18": {"ghn3": "2.210", ...}}.'
        ) from error
    if not found:
        raise TrainingConfigError(f"{path} holds no results.")
    return found


def published_summary(results: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | str]]:
    """Mean over networks and the best one, by column that has accuracies."""
    summary: dict[str, dict[str, float | str]] = {}
    for column in COLUMNS:
        values = {network: columns[column] for network, columns in results.items() if column in columns}
        if values:
            best = max(values, key=values.__getitem__)
            summary[column] = {
                "mean": statistics.fmean(values.values()),
                "best": values[best],
                "best_network": best,
                "networks": len(values),
            }
    return summary

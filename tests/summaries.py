"""Summaries of invented results, without any training."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_paraminit.evaluation.summary import Summary, summarize

STEPS = (0, 10, 20, 150)
START: dict[str, Any] = {
    "parameters": 1000,
    "step_seconds": 0.01,
    "zero_shot": {"plain": 9.0, "recalibrated": 31.0, "nearest_mean": 55.0, "linear": 70.0},
    "flow": {
        "loss": 2.3,
        "loss_decrease": 0.1,
        "activation_ratio": 3.0,
        "activation_slope": -0.1,
        "gradient_ratio": 12345.6,
        "gradient_slope": None,
        "dead_layers": 0,
        "exploding_layers": 0,
        "inactive_share": None,
        "half_batch_cosine": 0.5,
        "effective_rank": 12.0,
        "layers": [
            {"name": "a", "activation_std": 1.0, "gradient_rms": 1e-3},
            {"name": "b", "activation_std": 0.0, "gradient_rms": None},
            {"name": "c", "activation_std": 2.5, "gradient_rms": 2e-2},
        ],
    },
    "distribution": {"std_over_he": 1.0, "kurtosis": 3.0, "spectral_norm": 2.0, "duplicate_share": 0.0},
}


def training(net: str, init: str, seed: int, accuracies: Sequence[float], factor: float = 1.0) -> dict[str, Any]:
    """A finished training with these accuracies at `STEPS`."""
    curve = dict(zip(map(str, STEPS), accuracies, strict=True))
    return {
        "key": f"{net}{init}{seed}{factor}",
        "kind": "training",
        "net": net,
        "init": init,
        "seed": seed,
        "factor": factor,
        "block": "test",
        "status": "done",
        "curve": curve,
        "auc": sum(accuracies[1:]) / 3,
        "cost": {"init_seconds": 0.5, "init_peak_mb": 3.0, "training_cpu_seconds": 2.0},
    }


def start(net: str, init: str, **changes: Any) -> dict[str, Any]:
    """A measured start."""
    place = {"kind": "start", "net": net, "init": init, "seed": 0, "factor": 1.0, "block": "test", "status": "done"}
    return {**place, "key": f"start{net}{init}", "report": {"coverage": 1.0, "notes": []}, **START, **changes}


def failed(net: str, init: str, error: str) -> dict[str, Any]:
    """A failed training."""
    return {**training(net, init, 0, (0, 0, 0, 0)), "status": "failed", "error": error}


def summary_of(
    gains: Mapping[str, Mapping[str, float]], *, seeds: int = 8, extra: Sequence[dict[str, Any]] = ()
) -> Summary:
    """Gains by initialisation and network over a default that reaches 10, 40, 60 and 90 percent; seeds differ a bit."""
    nets = list(dict.fromkeys(net for by_net in gains.values() for net in by_net))
    records = [*extra]
    for net in nets:
        for seed in range(seeds):
            wobble = (seed % 4) / 10
            records.append(training(net, "default", seed, (10, 40 + wobble, 60, 90)))
            for init, by_net in gains.items():
                if net in by_net:
                    gain = by_net[net] + wobble * (1 if seed % 2 else -1)
                    records.append(training(net, init, seed, (10, 40 + gain, 60 + gain, 90)))
    return summarize(
        records,
        factors={},
        nets=nets,
        inits=["default", *gains],
        families=dict.fromkeys(nets, "any"),
    )

"""Results that are computed once: each is kept under all that decides it, so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_paraminit.evaluation.experiment import Record, versions
from hf_paraminit.io.run_store import RunStore

FORMAT = 1  # of records; a change makes all results new
PACKAGES = ("hf_paraminit", "torch", "timm")  # whose versions results depend on


class KeptResults:
    """Results in a run store, one line each.

    Args:
        store: Where they are kept; memory if None.
        **facts: What all of them depend on besides the versions of packages, as JSON values.
    """

    def __init__(self, store: RunStore | None = None, **facts: Any) -> None:
        self.store = RunStore(None) if store is None else store
        found = versions()
        self._facts = {"format": FORMAT, **{name: found[name] for name in PACKAGES}, **facts}

    def result(self, cell: Mapping[str, Any], compute: Callable[[], Record], **facts: Any) -> Record:
        """Return what is kept of a cell, or compute it and keep it.

        Args:
            cell: What its line shows: JSON values that say which one it is.
            compute: Gives its result, as JSON values; an error in it is raised, and nothing is kept.
            **facts: What else the result depends on.
        """
        key = _digest({**self._facts, "cell": dict(cell), **facts})
        if not self.store.is_done(key):
            self.store.add({"key": key, "status": "done", **cell, **compute()})
        return self.store.records[key]


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Hexadecimal digest of names, types, shapes and values; equal for equal tensors in the same order."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:20]


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode()).hexdigest()[:20]

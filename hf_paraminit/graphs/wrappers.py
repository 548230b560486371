"""Modules that stand for another one: data-parallel and averaged models."""

from __future__ import annotations

from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside wrappers that hold it as their only submodule, `module`."""
    children = dict(model.named_children())
    return unwrapped(children["module"]) if list(children) == ["module"] else model

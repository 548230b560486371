"""Lets `torch.nn.init.trunc_normal_` wait as a whole: it draws, looks at the numbers, and draws again until all fit."""

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from hf_paraminit.hooks.patching import Change, HostPatch, Replacement
from hf_paraminit.initializers.deferred_fills import DeferredFills

TRUNCATED_NORMAL = "_no_grad_trunc_normal_"  # what the public function calls, under whatever name others imported that


def plan_changes(init: types.ModuleType) -> Sequence[Change]:
    """What to change; nothing in a release that is organised in another way, where the function then never waits.

    Args:
        init: the module `torch.nn.init`.
    """
    return [Replacement.of(init, TRUNCATED_NORMAL, _deferring)] if hasattr(init, TRUNCATED_NORMAL) else []


TORCH_INIT = HostPatch("torch.nn.init", plan_changes)


def _deferring(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(original)
    def fill(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        fills = DeferredFills.recording_here()
        if fills is None or not fills.defer(original, tensor, args, kwargs):
            return original(tensor, *args, **kwargs)
        return tensor

    return fill

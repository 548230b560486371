"""What a caller asked for with `init=` and `init_kwargs=`, checked before the host builds anything."""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from torch import nn

from hf_paraminit.errors import InitializerConfigError
from hf_paraminit.graphs.class_layers import declared_class_layers
from hf_paraminit.hooks.torch_init import TORCH_INIT
from hf_paraminit.initializers.base import Initializer
from hf_paraminit.initializers.deferred_fills import DeferredFills, can_defer
from hf_paraminit.initializers.registry import create
from hf_paraminit.initializers.replicas import check_mode
from hf_paraminit.initializers.report import InitReport
from hf_paraminit.initializers.suggest import did_you_mean

SCOPES = ("missing", "all", "head")

M = TypeVar("M", bound=nn.Module)

logger = logging.getLogger("hf_paraminit")


@dataclass(frozen=True, kw_only=True)
class InitRequest:
    """An initializer and how a host should use it.

    Attributes:
        initializer: built from `init` and the settings in `init_kwargs`.
        scope: "missing" writes only what a checkpoint did not provide, "all" also what it did, "head" of the missing
            only the classifier that the model declares.
        distributed: as `initialize` takes it.
        fast: whether the host may leave out large random draws that the prediction overwrites.
    """

    initializer: Initializer
    scope: str
    distributed: str
    fast: bool = True

    @classmethod
    def from_arguments(cls, init: Any, init_kwargs: Mapping[str, Any] | None) -> Self | None:
        """The request, or None when there is none (`init` absent or None).

        Raises:
            UnknownInitializerError: no such initializer or variant.
            InitializerConfigError: settings it does not take, or values outside the lists above.
        """
        if init is None:
            return None
        if init_kwargs is not None and not isinstance(init_kwargs, Mapping):
            raise InitializerConfigError(f"init_kwargs must be a dict, found {init_kwargs!r}.")
        settings = dict(init_kwargs or {})
        scope = settings.pop("scope", "missing")
        if scope not in SCOPES:
            raise InitializerConfigError(
                f"scope must be one of {', '.join(SCOPES)}; found {scope!r}.{did_you_mean(str(scope), SCOPES)}"
            )
        distributed = settings.pop("distributed", "auto")
        check_mode(distributed)
        fast = settings.pop("fast", True)
        if not isinstance(fast, bool):
            raise InitializerConfigError(f"fast must be True or False, found {fast!r}.")
        return cls(initializer=create(init, **settings), scope=scope, distributed=distributed, fast=fast)

    def construct(self, build: Callable[[], M]) -> tuple[M, DeferredFills]:
        """Let the host build a model, without the large random draws where the initializer does not read them.

        Args:
            build: builds and returns the model; called again, the normal way, if it fails without the draws.

        Returns:
            The model, and the draws that wait for `fulfil`.
        """
        deferred = DeferredFills()
        leaves_values = self.scope == "head" or self.initializer.reads_values
        if not self.fast or leaves_values or not can_defer():
            return build(), deferred
        try:
            with TORCH_INIT.scoped(), deferred.recording():
                model = build()
        except Exception as error:
            logger.debug("building once more without deferring random draws, after %r", error)
        else:
            if isinstance(model, nn.Module):  # else `fulfil` says so
                deferred.assign(model)
            return model, deferred
        return build(), DeferredFills()

    def fulfil(
        self,
        model: nn.Module,
        names: Sequence[str] | None,
        model_name: str,
        deferred: DeferredFills | None = None,
    ) -> InitReport:
        """Write into the model that the host has built.

        Args:
            model: the finished model.
            names: parameters that may be written; None means all.
            model_name: what the host calls the model, for the log.
            deferred: the draws that the host left out; afterwards none waits any more, also after an error.

        Returns:
            What was done.
        """
        if self.scope == "head":
            names = _classifier_names(model, names, self.initializer.identifier)
        deferred = DeferredFills() if deferred is None else deferred
        try:
            report = self.initializer.apply(model, names, distributed=self.distributed, deferred=deferred)
        finally:
            deferred.finish()
        if names is not None and not names:
            logger.info(
                "%s: nothing to predict, the checkpoint provides every parameter of %s", report.initializer, model_name
            )
        else:
            logger.info("%s: %s", model_name, report.summary)
        return report


def _classifier_names(model: nn.Module, names: Sequence[str] | None, identifier: str) -> list[str]:
    """Those of the names (of all, for None) that belong to the classifier; a warning where a model declares none."""
    layers = declared_class_layers(model)
    if layers is None:
        warnings.warn(
            f"init={identifier!r} wrote nothing: its scope is 'head', and {type(model).__name__} declares no "
            "classifier. Use another scope, or hf_paraminit.initialize(model, ..., names=...).",
            stacklevel=3,
        )
    classifier = {id(parameter) for layer in layers or () for parameter in layer.parameters()}
    offered = None if names is None else set(names)
    return [
        name
        for name, parameter in model.named_parameters()
        if id(parameter) in classifier and (offered is None or name in offered)
    ]

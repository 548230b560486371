"""What a caller asked for with `init=` and `init_kwargs=`, checked before the host builds anything."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from hf_paraminit.errors import InitializerConfigError
from hf_paraminit.initializers.base import Initializer
from hf_paraminit.initializers.initialize import initialize
from hf_paraminit.initializers.registry import create
from hf_paraminit.initializers.replicas import check_mode
from hf_paraminit.initializers.report import InitReport
from hf_paraminit.initializers.suggest import did_you_mean

SCOPES = ("missing", "all")

logger = logging.getLogger("hf_paraminit")


@dataclass(frozen=True, kw_only=True)
class InitRequest:
    """An initializer and how a host should use it.

    Attributes:
        initializer: built from `init` and the settings in `init_kwargs`.
        scope: "missing" writes only what a checkpoint did not provide, "all" also what it did.
        distributed: as `initialize` takes it.
    """

    initializer: Initializer
    scope: str
    distributed: str

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
        return cls(initializer=create(init, **settings), scope=scope, distributed=distributed)

    def fulfil(self, model: nn.Module, names: Sequence[str] | None, model_name: str) -> InitReport:
        """Write into the model that the host has built.

        Args:
            model: the finished model.
            names: parameters that may be written; None means all.
            model_name: what the host calls the model, for the log.

        Returns:
            What was done.
        """
        report = initialize(model, self.initializer, names=names, distributed=self.distributed)
        if names is not None and not names:
            logger.info(
                "%s: nothing to predict, the checkpoint provides every parameter of %s", report.initializer, model_name
            )
        else:
            logger.info("%s: %s", model_name, report.summary)
        return report

"""What every initializer is: a pure `predict` that returns values, and a final `apply` that alone writes them."""

import abc
import dataclasses
import inspect
import time
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, cast, final

import torch
from torch import Tensor, nn

from hf_paraminit.errors import InitializerConfigError, UnknownInitializerError
from hf_paraminit.initializers.deferred_fills import DeferredFills
from hf_paraminit.initializers.parameters import (
    Prediction,
    WritePlan,
    check_prediction,
    plan_write,
    stage_values,
    write_values,
)
from hf_paraminit.initializers.replicas import is_shared, predict_once, require_equal_plans, together
from hf_paraminit.initializers.report import InitReport
from hf_paraminit.initializers.suggest import did_you_mean


@dataclass(frozen=True, kw_only=True, slots=True)
class InitializerConfig:
    """Settings that every initializer takes; a method adds its own fields in a subclass.

    Subclasses are dataclasses with the same three arguments. Fields hold JSON values. Plain annotations (`int`,
    `float`, `str`, `bool`, `None`, `Literal` and unions of them) are checked; anything beyond belongs in `validate`.

    Attributes:
        seed: start of every random draw, at least 0; same seed, same weights.
        device: where the prediction is computed; None means the model's own accelerator, else the device that
            Accelerate has given this process, else the CPU.
    """

    seed: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.device, torch.device):
            object.__setattr__(self, "device", str(self.device))
        for name, annotation in _field_types(type(self)).items():
            value = getattr(self, name)
            if not _admits(annotation, value):
                expected = annotation.__name__ if isinstance(annotation, type) else str(annotation)
                raise InitializerConfigError(f"{name} must be {expected}, found {value!r}.")
        if not 0 <= self.seed < 2**63:
            raise InitializerConfigError(f"seed must be between 0 and 2**63 - 1, found {self.seed}.")
        if self.device is not None:
            _check_device(self.device)
        self.validate()

    def validate(self) -> None:
        """Raise `InitializerConfigError` for values that cannot work; subclasses override this."""


class Initializer(abc.ABC):
    """Computes initial values for some parameters of a model.

    A subclass defines `predict`, and a nested `Config` when it has settings of its own; it becomes available by name
    with `register_initializer`. `apply` cannot be overridden: nothing else writes into a model.

    Attributes:
        name: the registered name, or the class name.
        variants: names of the presets, if there are any; `Config.variant` then holds the chosen one.
        reads_values: whether `predict` reads the values that the target has, rather than its structure alone. A host
            that builds a model for an initializer which does not may leave out the draws that will be overwritten.
        config: the settings of this object.
    """

    name: ClassVar[str]
    variants: ClassVar[tuple[str, ...]] = ()
    reads_values: bool = True
    Config: ClassVar[type[InitializerConfig]] = InitializerConfig
    config: InitializerConfig

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "apply" in vars(cls):
            raise TypeError(f"{cls.__name__} must not override apply(); implement predict() and let apply() write.")
        if cls.variants and "variant" not in _field_names(cls.Config):
            raise TypeError(f"{cls.__name__} has variants, so its Config needs a field 'variant' with the default one.")
        if "name" not in vars(cls):
            cls.name = cls.__name__

    def __init__(self, config: InitializerConfig | None = None, **settings: Any) -> None:
        """Take a ready config, or its fields as keywords, or both (keywords win).

        Raises:
            InitializerConfigError: unknown settings or values that cannot be used.
            UnknownInitializerError: a variant that does not exist.
        """
        self.config = self._checked_config(config, settings)

    @abc.abstractmethod
    def predict(self, target: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        """Compute values for the listed parameters; must not change the target, its buffers, or anything global.

        Gradients are off, autocast is off, the default dtype is float32, and torch's random generators start from
        `config.seed` and are put back afterwards.

        Args:
            target: the model being initialized, to be read only.
            names: parameters that may be written, in the model's order; a tied tensor comes once.

        Returns:
            A part of a state dict: float tensors of exactly the parameters' shapes, on any device. Parameters that
            are left out keep the values the model gave them.
        """

    def host_arguments(self, definition: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What follows from the arguments that a host builds a model with, and was not given; called before it builds.

        Args:
            definition: name of the module that defines the model, such as "timm.models.deit".
            arguments: what the host has; to be read only.

        Returns:
            Further arguments, none by default; the hook adds them and says so in the report.
        """
        return {}

    def provenance(self) -> dict[str, Any]:
        """Where the values of the last `predict` came from, by field of `InitReport`.

        Any of `predictor`, `revision`, `sha256`, `notes`, and `seconds` (phases inside `predict`).
        """
        return {}

    def reason_kept(self, target: nn.Module, name: str) -> str:
        """Why `predict` gave no value for this parameter; one short clause for the report."""
        return f"{self.name} has no value for it"

    def origin_of(self, name: str) -> str | None:
        """Which rule made the value of this parameter in the last `predict`; a few words for the report, or None."""
        return None

    @final
    def predict_isolated(self, target: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        """Call `predict` under the conditions that it is promised; nothing is checked or written.

        Args:
            target: as for `predict`.
            names: as for `predict`.
        """
        parameters = dict(target.named_parameters())
        with _isolated(self.config, (parameters[name] for name in names)):
            return self.predict(target, names)

    def with_config(self, **changes: Any) -> Self:
        """A copy with other settings; classes that are built from more than a config override this."""
        return type(self)(self.config, **changes)

    @property
    def identifier(self) -> str:
        """The name, with the variant where there are several."""
        return f"{self.name}:{getattr(self.config, 'variant')}" if self.variants else self.name  # noqa: B009

    @final
    def apply(
        self,
        model: nn.Module,
        names: Iterable[str] | None = None,
        *,
        distributed: str = "auto",
        deferred: DeferredFills | None = None,
    ) -> InitReport:
        """Predict and write, or raise and leave the model as it was. See `hf_paraminit.initialize`.

        Args:
            model: as for `initialize`.
            names: as for `initialize`.
            distributed: as for `initialize`.
            deferred: random fills that a host left out while it built the model, which the caller then finishes.
        """
        seconds: dict[str, float] = {}
        shared = is_shared(distributed)
        with torch.inference_mode(False):
            with _timed("plan", seconds):
                plan = together(lambda: plan_write(model, names, deferred or ()), shared)
                require_equal_plans(plan, shared)
            if plan.on_meta:
                report = self._skipped(plan)
            else:
                with _timed("predict", seconds):
                    prediction = predict_once(lambda: self._prediction(model, plan, deferred), shared)
                with _timed("write", seconds):
                    staged = together(lambda: stage_values(plan.parameters, prediction.values), shared)
                    write_values(plan.parameters, staged, deferred)
                num_undrawn = 0 if deferred is None else deferred.num_skipped
                report = self._report(plan, prediction, seconds, num_undrawn=num_undrawn)
        model._hf_paraminit = report  # type: ignore[assignment]
        return report

    def _checked_config(self, config: InitializerConfig | None, settings: Mapping[str, Any]) -> InitializerConfig:
        known = _field_names(self.Config)
        unknown = [key for key in settings if key not in known]
        if unknown:
            raise InitializerConfigError(
                f"{self.name} does not take {', '.join(map(repr, unknown))}; it takes {', '.join(known)}."
                f"{did_you_mean(unknown[0], known)}"
            )
        if config is not None and not isinstance(config, self.Config):
            raise InitializerConfigError(
                f"{self.name} needs a {self.Config.__qualname__}, found a {type(config).__qualname__}."
            )
        try:
            checked = self.Config(**settings) if config is None else dataclasses.replace(config, **settings)
        except InitializerConfigError as error:
            raise InitializerConfigError(f"{self.name}: {error}") from error
        except (TypeError, ValueError) as error:  # a required field that is missing, or the method's own checks
            raise InitializerConfigError(f"{self.name} cannot use these settings: {error}") from error
        if self.variants:
            variant = match_variant(self.name, getattr(checked, "variant"), self.variants)  # noqa: B009
            checked = dataclasses.replace(checked, **cast(dict[str, Any], {"variant": variant}))
        return checked

    def _prediction(self, model: nn.Module, plan: WritePlan, deferred: DeferredFills | None) -> Prediction:
        names = list(plan.parameters)
        if not names:
            return Prediction(values={})
        lacks_values = bool(deferred)
        try:
            predicted = self.predict_isolated(model, names)
            lacks_values = lacks_values and self.reads_values
        except Exception:
            if not lacks_values:
                raise
        if deferred and lacks_values:
            deferred.finish()
            return self._prediction(model, plan, None)
        values, refused = check_prediction(plan, predicted, self.identifier)
        kept = {name: self.reason_kept(model, name) for name in names if name not in values}
        origins = {name: origin for name in values if (origin := self.origin_of(name)) is not None}
        return Prediction(values=values, origins=origins, kept=kept, refused=refused, provenance=self.provenance())

    def _report(
        self, plan: WritePlan, prediction: Prediction, seconds: dict[str, float], *, num_undrawn: int
    ) -> InitReport:
        offered = plan.parameters
        tied = {alias: f"tied to {name}" for alias, name in plan.offered_aliases.items()}
        predicted = {name: _described(offered[name], prediction.origins.get(name)) for name in prediction.values}
        kept = prediction.kept
        return InitReport(
            initializer=self.identifier,
            predicted=predicted | {a: text for a, text in tied.items() if plan.aliases[a] in predicted},
            kept=kept | {a: text for a, text in tied.items() if plan.aliases[a] in kept},
            refused=plan.refused | prediction.refused,
            coverage_tensors=_share(len(predicted), len(offered)),
            coverage_elements=_share(
                sum(offered[name].numel() for name in predicted), sum(p.numel() for p in offered.values())
            ),
            seed=self.config.seed,
            **_report_fields(prediction.provenance, seconds, offered=bool(offered), num_undrawn=num_undrawn),
        )

    def _skipped(self, plan: WritePlan) -> InitReport:
        warnings.warn(
            f"{self.identifier} wrote nothing: {plan.model_name} is on the meta device. Materialise the model, "
            "then call hf_paraminit.initialize(model, ...).",
            stacklevel=4,
        )
        kept = dict.fromkeys([*plan.parameters, *plan.offered_aliases], "on the meta device")
        return InitReport(
            initializer=self.identifier,
            kept=kept,
            refused=plan.refused,
            seed=self.config.seed,
            skipped_reason="meta",
        )


class FunctionInitializer(Initializer):
    """A plain function `f(model, names, **settings)` that returns a part of a state dict, as an initializer."""

    def __init__(self, function: Callable[..., dict[str, Tensor]], name: str | None = None, /, **settings: Any) -> None:
        """Bind the settings now, so that a wrong one is reported before any model is built.

        Args:
            function: called as `function(model, names, **settings)` under the conditions of `Initializer.predict`.
            name: what reports call it; the function's own name by default.
            **settings: passed through, except that `seed` and `device` always count as the initializer's own, and
                reach the function only when it takes them.

        Raises:
            InitializerConfigError: settings that the function does not take.
        """
        own = {key: value for key, value in settings.items() if key in _field_names(InitializerConfig)}
        self.name = name or str(getattr(function, "__name__", type(function).__name__))  # type: ignore[misc]
        self.function = function
        self.settings = settings
        self.arguments = _arguments_for(function, settings, self.name, optional=own)
        super().__init__(**own)

    def predict(self, target: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        return self.function(target, names, **self.arguments)

    def with_config(self, **changes: Any) -> Self:
        return type(self)(self.function, self.name, **{**self.settings, **changes})


def match_variant(name: str, variant: object, variants: Sequence[str]) -> str:
    """The variant as it is spelled in `variants`; case does not count, and `-` and `_` are equal.

    Raises:
        UnknownInitializerError: no such variant.
    """
    for known in variants:
        if isinstance(variant, str) and spelling_key(variant) == spelling_key(known):
            return known
    if not variants:
        raise UnknownInitializerError(f"{name} has no variants, so {name}:{variant} does not exist; use init={name!r}.")
    raise UnknownInitializerError(
        f"{name} has no variant {variant!r}; it has {', '.join(variants)}.{did_you_mean(str(variant), variants)}"
    )


def spelling_key(name: str) -> str:
    """Equal for all accepted spellings of a name."""
    return name.strip().lower().replace("_", "-")


def _field_names(config_class: type[InitializerConfig]) -> list[str]:
    return [field.name for field in dataclasses.fields(config_class)]


def _field_types(config_class: type[InitializerConfig]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(config_class)
    except NameError:  # postponed annotations of a class inside a function cannot be resolved; nothing to check then
        return {}


def _admits(annotation: object, value: object) -> bool:
    """Whether a plain annotation admits the value; annotations of any other kind admit everything."""
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union):
        return any(_admits(choice, value) for choice in typing.get_args(annotation))
    if origin is Literal:
        return value in typing.get_args(annotation)
    if annotation in (None, types.NoneType):
        return value is None
    if annotation in (int, float):  # a bool is an int to Python, not to a user
        numbers = int if annotation is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool)
    if annotation in (str, bool):
        return isinstance(value, cast(type, annotation))
    return True


def _check_device(device: str) -> None:
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise InitializerConfigError(f"device must be one that torch knows, found {device!r}.") from error
    if place.type in ("cpu", "meta"):
        return
    count = torch.get_device_module(place).device_count()
    if (place.index or 0) >= count:
        raise InitializerConfigError(f"device {device!r} is not there: torch sees {count} of type {place.type!r} here.")


def _arguments_for(
    function: Callable[..., Any], settings: Mapping[str, Any], name: str, optional: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings that the function takes; only those in `optional` may be left out."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some functions written in C have no signature
        return dict(settings)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(settings)
    by_keyword = [p.name for p in list(parameters)[2:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    unknown = [key for key in settings if key not in by_keyword and key not in optional]
    if unknown:
        raise InitializerConfigError(
            f"{name} does not take {', '.join(map(repr, unknown))}; it takes {', '.join(by_keyword) or 'no settings'}."
            f"{did_you_mean(unknown[0], by_keyword)}"
        )
    return {key: value for key, value in settings.items() if key in by_keyword}


_predicting: ContextVar[bool] = ContextVar("hf_paraminit_predicting", default=False)


def is_predicting() -> bool:
    """Whether an initializer is at work here: models that are built now are its own tools, not the user's."""
    return _predicting.get()


@contextmanager
def _isolated(config: InitializerConfig, parameters: Iterable[Tensor]) -> Iterator[None]:
    """The same surroundings for every prediction, whatever the caller has switched on; no trace of it afterwards."""
    devices = {parameter.device for parameter in parameters}
    if config.device is not None:
        devices.add(torch.device(config.device))
    cuda = sorted({_cuda_index(device) for device in devices if device.type == "cuda"})
    with ExitStack() as stack:
        stack.callback(_predicting.reset, _predicting.set(True))
        stack.enter_context(torch.no_grad())
        for kind in sorted({"cpu", *(device.type for device in devices)} - {"meta"}):
            stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.get_float32_matmul_precision() != "highest":
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        if torch.get_default_dtype() != torch.float32:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        # torch.manual_seed would also reseed devices that were not set aside
        torch.default_generator.manual_seed(config.seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(config.seed)
        yield


def _cuda_index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


@contextmanager
def _timed(phase: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - start


def _described(parameter: Tensor, origin: str | None) -> str:
    return f"{tuple(parameter.shape)} {parameter.dtype}" + (f", {origin}" if origin else "")


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _report_fields(
    provenance: Mapping[str, Any], seconds: Mapping[str, float], *, offered: bool, num_undrawn: int
) -> dict[str, Any]:
    """Provenance as fields of the report, with the phases inside `predict` next to the outer ones."""
    notes = tuple(provenance.get("notes", ())) if offered else ("no parameter was offered, so nothing was predicted",)
    if num_undrawn:
        notes += (f"{num_undrawn:,} random numbers that would have been overwritten were not drawn",)
    return {**provenance, "notes": notes, "seconds": {**seconds, **provenance.get("seconds", {})}}

"""A few steps of a copy of a model on generated images: what its layers emit and which tensors get a gradient."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from hf_paraminit.evaluation.explanation import LayerRow, OutputRow
from hf_paraminit.evaluation.tensor_statistics import output_units, share_of_locked_rows
from hf_paraminit.graphs.autograd_walk import parameter_owners
from hf_paraminit.graphs.class_layers import declared_class_layers
from hf_paraminit.graphs.example_inputs import ExampleInputs
from hf_paraminit.graphs.meta_copy import copy_structure, tensor_on_cpu
from hf_paraminit.training.synthetic import SyntheticImages, SyntheticSpec, normalize

BATCH_SIZE = 4  # batch norm needs several, and so does the question whether images are told apart
GENERATED_SIDE = 64  # images are drawn at this size and enlarged
LEAST_HALVED_SIDE = 128  # smaller images are not made smaller still
# A branch that starts at zero opens after one step, the layers before it after two; a zero classifier in front of
# zero-started norms with zero layer scales takes a fourth.
MAX_STEPS = 4
STEP_SIZE = 1e-3  # every element moves by this much, as in the first step of Adam
_RECTIFIERS = frozenset({F.relu, F.relu6, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_})
_SOFTMAXES = frozenset({F.softmax, torch.softmax, Tensor.softmax})
MIN_ATTENDED = 8  # a softmax over fewer entries chooses between branches or heads, not positions


@dataclass(slots=True)
class Probe:
    """What a run of the copy showed.

    Attributes:
        layers: In the order of execution.
        output: Of the first pass.
        gradients: Root mean square by parameter name, None where the loss does not depend on the parameter.
        stuck: Parameters whose gradient was exactly zero in every pass.
        locked_rows: `share_of_locked_rows` of the parameters it was asked for.
        batch_statistics: (mean, variance) per channel of what entered each batch-norm layer.
    """

    layers: list[LayerRow] = field(default_factory=list)
    output: OutputRow | None = None
    gradients: dict[str, float | None] = field(default_factory=dict)
    stuck: set[str] = field(default_factory=set)
    locked_rows: dict[str, float] = field(default_factory=dict)
    batch_statistics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def run_probe(model: nn.Module, inputs: tuple[int, int, int] | ExampleInputs, repeated: set[str]) -> Probe:
    """Run a float32 copy of the model on the CPU; the model and all random states stay as they are.

    The copy trains: batch norm uses the batch, dropout and stochastic depth are off. Where the model allows it the
    images have half the declared side.

    Args:
        model: The model; every parameter has values.
        inputs: (channels, height, width) of an image to generate, or what to call the model with instead.
        repeated: Parameters with repeated rows, to be asked whether these ever separate.

    Raises:
        Exception: Whatever the forward pass of the model raises, on its last attempt.
    """
    with _controlled_environment():
        attempts = [inputs] if isinstance(inputs, ExampleInputs) else _generated(*inputs)
        for number, attempt in enumerate(attempts, start=1):
            try:
                return _Run(model, attempt, repeated).probe
            except Exception:
                if number == len(attempts):
                    raise
    raise AssertionError("the last attempt returns or raises")


def _generated(channels: int, height: int, width: int) -> list[ExampleInputs]:
    sizes = [(height, width)]
    if min(height, width) >= LEAST_HALVED_SIDE:
        sizes.insert(0, (height // 2, width // 2))
    return [ExampleInputs.of(_generated_images(channels, *size)) for size in sizes]


def _generated_images(channels: int, height: int, width: int) -> Tensor:
    images, _ = SyntheticImages(SyntheticSpec(size=GENERATED_SIDE)).batch("train", 0, BATCH_SIZE)
    images = F.interpolate(images, size=(height, width), mode="bilinear", antialias=True)
    if channels != images.shape[1]:
        images = images.mean(1, keepdim=True).expand(-1, channels, -1, -1).contiguous()
    return normalize(images)


class _Run:
    """One copy, from the first pass to the last step."""

    def __init__(self, model: nn.Module, inputs: ExampleInputs, repeated: set[str]) -> None:
        self.probe = Probe()
        self.replica = copy_structure(model, tensor_on_cpu)
        self.inputs = inputs
        self.parameters = dict(self.replica.named_parameters())
        self.learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._set_modes()
        gradients = self._first_pass()
        stuck = _without_gradient(gradients)
        for _ in range(MAX_STEPS):
            if not stuck:
                break
            self._step(gradients)
            loss, _ = self._loss(self._forward())
            gradients = self._gradients(loss)
            stuck &= _without_gradient(gradients)
        self.probe.stuck = stuck
        owners = parameter_owners(model)
        for name, parameter in model.named_parameters():
            gradient = gradients.get(name)
            if name in repeated and gradient is not None:
                _, owner = owners[id(parameter)]
                rows = output_units(tensor_on_cpu(parameter), owner)
                self.probe.locked_rows[name] = share_of_locked_rows(rows, output_units(gradient, owner))

    def _set_modes(self) -> None:
        self.replica.train()
        for module in self.replica.modules():
            if "drop" in type(module).__name__.lower():
                module.training = False  # not eval(), which reaches into what a residual wrapper holds

    def _first_pass(self) -> dict[str, Tensor | None]:
        observer = _Observer(self.replica)
        with observer, _FunctionWatch(observer) as watch:
            output = self._forward()
        self.probe.layers = observer.rows
        self.probe.batch_statistics = observer.batch_statistics
        loss, scores = self._loss(output)
        self.probe.output = self._describe_output(scores, observer, watch.peaks)
        gradients = self._gradients(loss)
        self.probe.gradients = {
            name: None if gradient is None else gradient.double().square().mean().sqrt().item()
            for name, gradient in gradients.items()
        }
        return gradients

    def _forward(self) -> Any:
        # The same draws in every pass, and the model may write into its input.
        torch.default_generator.manual_seed(0)
        inputs = self.inputs.map(tensor_on_cpu)
        return self.replica(*inputs.positional, **(inputs.named or {}))

    def _loss(self, output: Any) -> tuple[Tensor, Tensor | None]:
        """Cross-entropy of every score matrix with arbitrary labels; any other output counts by fixed random signs."""
        losses, scores = [], None
        generator = torch.Generator().manual_seed(0)
        for tensor in _differentiable(output):
            if tensor.dim() == 2 and tensor.shape[1] > 1:
                scores = tensor if scores is None else scores
                losses.append(F.cross_entropy(tensor, torch.arange(len(tensor)) % tensor.shape[1]))
            else:
                losses.append((tensor * torch.randn(tensor.shape, generator=generator)).mean())
        if not losses:
            raise ValueError("none of its outputs can be differentiated")
        return torch.stack(losses).sum(), scores

    def _gradients(self, loss: Tensor) -> dict[str, Tensor | None]:
        names = [name for name, parameter in self.parameters.items() if parameter.requires_grad]
        found = torch.autograd.grad(loss, [self.parameters[name] for name in names], allow_unused=True)
        return dict(zip(names, found, strict=True))

    @torch.no_grad()
    def _step(self, gradients: Mapping[str, Tensor | None]) -> None:
        for name in self.learns & gradients.keys():
            gradient = gradients[name]
            if gradient is not None:
                self.parameters[name].sub_(gradient.sign(), alpha=STEP_SIZE)

    @torch.no_grad()
    def _describe_output(self, scores: Tensor | None, observer: _Observer, attention: dict[str, float]) -> OutputRow:
        layers = declared_class_layers(self.replica) or ()
        bias = layers[0]._parameters.get("bias") if layers else None
        is_classifier = bool(layers) and scores is not None and scores.shape[1] == len(layers[0].weight)  # type: ignore[arg-type]
        features = observer.features if is_classifier else scores
        return OutputRow(
            batch=self._batch_shape(),
            num_classes=scores.shape[1] if is_classifier and scores is not None else None,
            loss=_mean_loss(scores) if is_classifier and scores is not None else None,
            bias_share=None if bias is None or not is_classifier else bias.softmax(0).max().item(),
            is_one_class=len(scores.argmax(1).unique()) == 1 if is_classifier and scores is not None else None,
            feature_spread=None if features is None else _spread(features),
            attention=attention,
        )

    def _batch_shape(self) -> tuple[int, ...]:
        """Shape of the first tensor of the inputs."""
        shapes: list[tuple[int, ...]] = []
        self.inputs.map(lambda tensor: shapes.append(tuple(tensor.shape)) or tensor)  # type: ignore[func-returns-value]
        return shapes[0]


class _Observer:
    """Hooks that write down what each layer of the first pass receives and emits."""

    def __init__(self, replica: nn.Module) -> None:
        self.replica = replica
        self.rows: list[LayerRow] = []
        self.batch_statistics: dict[str, tuple[Tensor, Tensor]] = {}
        self.features: Tensor | None = None
        self.running: list[tuple[str, float | None]] = []  # the modules that are at work, with the scale of their input
        self._handles: list[Any] = []
        self._class_layers = set(declared_class_layers(replica) or ())

    def __enter__(self) -> _Observer:
        for name, module in self.replica.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._enter(name)))
            self._handles.append(module.register_forward_hook(self._leave(name)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, name: str) -> Callable[[nn.Module, Any], None]:
        def enter(module: nn.Module, arguments: Any) -> None:
            received = next(_floating(arguments), None)
            has_parameters = any(True for _ in module.parameters(recurse=False))
            self.running.append((name, _std(received) if has_parameters and received is not None else None))
            if received is None:
                return
            if isinstance(module, _BatchNorm):
                axes = [axis for axis in range(received.dim()) if axis != 1]
                variance, mean = torch.var_mean(received.detach(), axes, correction=0)
                self.batch_statistics[name] = mean, variance
            if module in self._class_layers:
                self.features = received.detach().clone()

        return enter

    def _leave(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def leave(module: nn.Module, arguments: Any, output: Any) -> None:
            _, input_std = self.running.pop()
            emitted = next(_floating(output), None)
            if emitted is None or emitted.numel() == 0 or not any(True for _ in module.parameters(recurse=False)):
                return
            weight = module._parameters.get("weight")
            is_kernel = weight is not None and weight.dim() >= 2
            weight_name = ".".join(filter(None, (name, "weight"))) if is_kernel else ""
            self.rows.append(_layer_row(name, type(module).__name__, emitted, input_std, weight=weight_name))

        return leave


def _layer_row(
    name: str, kind: str, emitted: Tensor, input_std: float | None, *, weight: str = "", is_rectifier: bool = False
) -> LayerRow:
    emitted = emitted.detach()
    # Images (B, C, H, W) carry their channels second; everything else (B, N, D), (B, D) last.
    units = emitted.movedim(1, -1) if emitted.dim() == 4 else emitted
    units = units.reshape(-1, units.shape[-1])
    return LayerRow(
        name=name,
        kind=kind,
        weight=weight,
        input_std=input_std,
        output_std=_std(emitted),
        max_abs=emitted.abs().max().item(),
        is_finite=bool(emitted.isfinite().all()),
        num_units=units.shape[1],
        dead_units=(units == 0).all(0).float().mean().item() if is_rectifier else None,
    )


class _FunctionWatch(TorchFunctionMode):
    """Sees every rectifier, softmax over positions and fused attention, whether a module or a function calls it."""

    def __init__(self, observer: _Observer) -> None:
        super().__init__()
        self.observer = observer
        self.peaks: dict[str, float] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _RECTIFIERS:
            input_std = _std(args[0])  # before the call, which may overwrite it
            result = func(*args, **kwargs)
            self.observer.rows.append(_layer_row(self._caller, "relu", result, input_std, is_rectifier=True))
            return result
        result = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            self._note(_attention_weights(*args, **kwargs))
        elif func in _SOFTMAXES:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if isinstance(dim, int):
                self._note(result.detach().movedim(dim, -1))
        return result

    @property
    def _caller(self) -> str:
        return self.observer.running[-1][0] if self.observer.running else ""

    def _note(self, weights: Tensor) -> None:
        if weights.shape[-1] >= MIN_ATTENDED and weights.dim() >= 3:
            peak = weights.amax(-1).mean().item()
            self.peaks[self._caller] = max(peak, self.peaks.get(self._caller, 0.0))


def _attention_weights(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **kwargs: Any
) -> Tensor:
    """Weights of the first image, which is enough to see saturation."""
    query, key = query[:1].detach(), key[:1].detach()
    if key.dim() == 4 and key.shape[1] != query.shape[1]:  # grouped queries
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scale = kwargs.get("scale")
    logits = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    return logits.softmax(-1)


@contextmanager
def _controlled_environment() -> Iterator[None]:
    """Gradients on, autocast and inference mode off; random states of torch, NumPy and Python are put back."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


def _without_gradient(gradients: Mapping[str, Tensor | None]) -> set[str]:
    return {name for name, gradient in gradients.items() if gradient is not None and not gradient.any()}


def _floating(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        yield from _floating(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _floating(item)


def _differentiable(output: Any) -> Iterator[Tensor]:
    return (tensor for tensor in _floating(output) if tensor.grad_fn is not None)


def _mean_loss(scores: Tensor) -> float:
    """Cross-entropy averaged over all labels, so that it does not hang on which labels were drawn."""
    return -scores.log_softmax(1).mean().item()


def _spread(features: Tensor) -> float | None:
    largest = features.abs().max()
    if not largest.isfinite():
        return None
    return ((features - features[:1]).abs().max() / largest).item() if largest > 0 else 0.0


def _std(tensor: Tensor) -> float:
    return tensor.detach().std(correction=0).item()

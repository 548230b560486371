"""Training the members of a zoo: many small networks at once, stacked by `torch.func`, or one after another.

A member depends on its own settings alone: seed, optimiser, rate. Stacked members share the optimiser's kind, batch
size and schedule; rate, weight decay and data order are their own.

Axes: M members of a stack, P parameters of one network, B images of a batch.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_paraminit.errors import TrainingConfigError

LabelledImages = tuple[Tensor, Tensor]
Constructor = Callable[..., nn.Module]
Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "onecycle"]
Init = Literal["default", "uniform", "normal", "kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal"]

ADAM_BETAS, ADAM_EPS = (0.9, 0.999), 1e-8
BIAS = 0.01  # of every layer of the published zoos, whatever the weights' distribution
EVALUATED_AT_ONCE = 500  # images
# The one-cycle policy of torch: share of warm-up, and by what the peak is divided at the start and at the end.
WARMUP_SHARE, START_DIVISOR, END_DIVISOR = 0.3, 25.0, 25e4
_TRIAL_MEMBERS, _TRIALS = 8, 3  # of the measurement whether stacking pays
_VMAP_ERRORS = (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError)


@dataclass(frozen=True, kw_only=True)
class MemberConfig:
    """How one member of a zoo is trained.

    Attributes:
        seed: Of its initial weights and the order of its data.
        epochs: Passes over the training images; the last images of a pass that fill no batch are left out.
        batch_size: Images per step.
        optimizer: "adam", "adamw" or "sgd".
        learning_rate: Its (peak) rate.
        weight_decay: Added to the gradient, or decoupled for "adamw".
        momentum: Of "sgd".
        schedule: "constant" or "onecycle".
        init: Distribution of the initial weights of linear and convolutional layers, by the names of `torch.nn.init`;
            their biases are then 0.01, as in the published zoos. "default" leaves what the constructor made.
        model_kwargs: Arguments of the constructor that vary over the zoo, such as an activation.

    Raises:
        TrainingConfigError: Values that cannot work; all are named.
    """

    seed: int
    epochs: int = 25
    batch_size: int = 64
    optimizer: Optimizer = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: Schedule = "constant"
    init: Init = "default"
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choices = {"optimizer": Optimizer, "schedule": Schedule, "init": Init}
        faults = [
            f"{name} must be one of {', '.join(get_args(values))}, got {getattr(self, name)!r}"
            for name, values in choices.items()
            if getattr(self, name) not in get_args(values)
        ]
        for name, low in (("seed", 0), ("epochs", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                faults.append(f"{name} must be a whole number of at least {low}, got {value!r}")
        for name in ("learning_rate", "weight_decay", "momentum"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
                faults.append(f"{name} must be a number of at least 0, got {value!r}")
        if not isinstance(self.model_kwargs, Mapping):
            faults.append(f"model_kwargs must be a dictionary, got {self.model_kwargs!r}")
        if faults:
            raise TrainingConfigError(f"Cannot train a member of a zoo: {'; '.join(faults)}.")

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "model_kwargs": dict(self.model_kwargs)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            TrainingConfigError: Unknown names, or values that cannot work.
        """
        known = {item.name for item in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise TrainingConfigError(
                f"Members of a zoo have no {', '.join(unknown)}; their settings are {', '.join(sorted(known))}. "
                "Further arguments of the network go into model_kwargs."
            )
        return cls(**values)

    @property
    def stack_key(self) -> tuple[Any, ...]:
        """Equal for members that can be trained in one stack."""
        network = tuple(sorted((name, repr(value)) for name, value in self.model_kwargs.items()))
        return (self.epochs, self.batch_size, self.optimizer, self.momentum, self.schedule, network)

    def rate_factor(self, step: int, num_steps: int) -> float:
        """Part of the peak rate at a step, counted from 0."""
        if self.schedule == "constant":
            return 1.0
        rising = WARMUP_SHARE * num_steps - 1
        if step <= rising:
            return _cosine(1 / START_DIVISOR, 1.0, step / max(rising, 1e-9))
        return _cosine(1.0, 1 / END_DIVISOR, (step - rising) / max(num_steps - 1 - rising, 1e-9))


_TRIAL = MemberConfig(seed=0)


@dataclass(frozen=True, eq=False, kw_only=True)
class ZooData:
    """What a zoo is trained and evaluated on, in memory.

    Attributes:
        name: What the zoo's card calls it.
        train: Images (N, C, H, W) float32, normalised, and labels (N,) int64.
        validation: Likewise; for choosing among members.
        test: Likewise; for reporting.
    """

    name: str
    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages

    @property
    def blocks(self) -> dict[str, LabelledImages]:
        """Blocks by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def to(self, device: str | torch.device) -> ZooData:
        """The same data on a device."""
        moved = {name: (images.to(device), labels.to(device)) for name, (images, labels) in self.blocks.items()}
        return ZooData(name=self.name, **moved)


@dataclass(frozen=True, eq=False, kw_only=True)
class Snapshot:
    """Members of a stack after an epoch.

    Attributes:
        epoch: Passes over the training images.
        tensors: State dict entries, each (M, *shape), on the CPU.
        metrics: "train_accuracy", "train_loss" and so on for each block of the data, each (M,).
    """

    epoch: int
    tensors: dict[str, Tensor]
    metrics: dict[str, Tensor]


def build_member(constructor: Constructor, member: MemberConfig) -> nn.Module:
    """Make a member as it is before training; torch's random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(member.seed)
        model = constructor(**member.model_kwargs)
        if member.init != "default":
            _draw_weights(model, member.init)
    return model.float().train()


def why_not_stacked(model: nn.Module, images: Tensor) -> str | None:
    """Why `torch.func.vmap` cannot train copies of a network: what it said, None if it can.

    Args:
        model: Network; not changed.
        images: (B, C, H, W) input.
    """
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    try:
        with torch.random.fork_rng(devices=[]):
            stack = _Stacked([model, copy.deepcopy(model)], [_TRIAL] * 2)
            stack.step(torch.stack([images, images]), torch.stack([labels, labels]), 1.0)
            stack.scores(images)
    except _VMAP_ERRORS as error:
        return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return None


def stacking_gain(model: nn.Module, images: Tensor) -> float:
    """How many times faster copies of a network take a step together than one after another, on this machine.

    Each step of small networks is mostly overhead, which is paid once for all of them. On a CPU that gains about 2 for
    a network of a thousand weights on 8-pixel images, and loses for larger images, whose grouped convolutions are slow.

    Args:
        model: Network that can be stacked; not changed.
        images: (B, C, H, W) a batch of the size to train with, on the device of the network.
    """
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    networks = [copy.deepcopy(model) for _ in range(_TRIAL_MEMBERS)]
    stack = _Stacked(networks, [_TRIAL] * _TRIAL_MEMBERS)
    singles = [_Single(network, _TRIAL) for network in networks]
    together: list[float] = []
    alone: list[float] = []
    with torch.random.fork_rng(devices=[]):
        for _ in range(_TRIALS):
            start = _now(images)
            stack.step(images.expand(_TRIAL_MEMBERS, *images.shape), labels.expand(_TRIAL_MEMBERS, -1), 1.0)
            middle = _now(images)
            for single in singles:
                single.step(images[None], labels[None], 1.0)
            together.append(middle - start)
            alone.append(_now(images) - middle)
    return min(alone) / min(together)


def train_members(
    constructor: Constructor,
    members: Sequence[MemberConfig],
    data: ZooData,
    save_epochs: Sequence[int],
    *,
    device: str | torch.device = "cpu",
    stacked: bool = True,
) -> Iterator[Snapshot]:
    """Train members and yield them after the chosen epochs; torch's random state is kept.

    Args:
        constructor: Builds a network; called with `model_kwargs` of the member.
        members: Of one `stack_key`; one alone if they are not stacked.
        data: What to train and evaluate on.
        save_epochs: Epochs to yield; 0 is before training.
        device: Where to train.
        stacked: Train all members at once.
    """
    networks = [build_member(constructor, member).to(device) for member in members]
    runner = _Stacked(networks, members) if stacked else _Single(networks[0], members[0])
    data = data.to(device)
    config, images, labels = members[0], *data.train
    order = _Order(members, len(images))
    num_steps = config.epochs * order.steps
    if 0 in save_epochs:
        yield _snapshot(0, runner, data)
    state = _draws(members)
    for epoch in range(1, config.epochs + 1):
        for number, batch in enumerate(order.epoch(device)):
            step = (epoch - 1) * order.steps + number
            with torch.random.fork_rng(devices=[]):  # a consumer of the snapshots has draws of its own
                torch.set_rng_state(state)
                runner.step(images[batch], labels[batch], config.rate_factor(step, num_steps))
                state = torch.get_rng_state()
        if epoch in save_epochs:
            yield _snapshot(epoch, runner, data)


class _Order:
    """Which images each member sees at each step: a new permutation for each epoch, from the member's own seed."""

    def __init__(self, members: Sequence[MemberConfig], num_images: int) -> None:
        self.num_images = num_images
        self.batch_size = members[0].batch_size
        self.steps = num_images // self.batch_size
        self.generators = [torch.Generator().manual_seed(member.seed) for member in members]

    def epoch(self, device: str | torch.device) -> Tensor:
        """(steps, M, B) int64."""
        orders = [torch.randperm(self.num_images, generator=generator) for generator in self.generators]
        used = torch.stack(orders)[:, : self.steps * self.batch_size]
        return used.unflatten(1, (self.steps, self.batch_size)).movedim(1, 0).to(device)


class _Stacked:
    """M networks as one: every parameter is a slice of one (M, P) tensor, so that optimisers need few operations."""

    def __init__(self, networks: Sequence[nn.Module], members: Sequence[MemberConfig]) -> None:
        parameters, self.buffers = stack_module_state(list(networks))
        self.num_members = len(networks)
        self.shapes = {name: tensor.shape[1:] for name, tensor in parameters.items()}
        self.flat = torch.cat([tensor.detach().flatten(1) for tensor in parameters.values()], 1)
        sizes = [shape.numel() for shape in self.shapes.values()]
        self.parameters = {
            name: part.unflatten(1, shape) if shape else part.squeeze(1)
            for (name, shape), part in zip(self.shapes.items(), self.flat.split(sizes, 1), strict=True)
        }
        self.skeleton = copy.deepcopy(networks[0])  # not on the meta device: moving there would untie tied weights
        self.aliases = _aliases(self.skeleton)
        self.optimizer = _StackedOptimizer(self.flat, members)

    def step(self, images: Tensor, labels: Tensor, rate_factor: float) -> None:
        """Train each member on its images (M, B, C, H, W)."""
        self.optimizer.step(self._gradients(images, labels), rate_factor)

    def _gradients(self, images: Tensor, labels: Tensor) -> Tensor:
        """(M, P) gradients of the cross-entropy; running statistics are updated."""

        def loss(parameters: dict, buffers: dict, images: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(self.skeleton, (parameters, buffers), (images,)), labels)

        self.skeleton.train()
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no rule for vmap, and is no faster at this size
            found = vmap(grad(loss), randomness="different")(self.parameters, self.buffers, images, labels)
        return torch.cat([found[name].reshape(self.num_members, -1) for name in self.shapes], 1)

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """(M, B, classes) in eval mode."""

        def forward(parameters: dict, buffers: dict) -> Tensor:
            return functional_call(self.skeleton, (parameters, buffers), (images,))

        self.skeleton.eval()
        with sdpa_kernel(SDPBackend.MATH):
            return vmap(forward, randomness="different")(self.parameters, self.buffers)

    def tensors(self) -> dict[str, Tensor]:
        """Copies on the CPU of the entries of the state dicts, each (M, *shape)."""
        known = {**self.parameters, **self.buffers}
        return {name: known[source].detach().clone().cpu() for name, source in self.aliases.items()}


class _StackedOptimizer:
    """SGD, Adam or AdamW of torch, with a rate and weight decay for each row of one (M, P) tensor."""

    def __init__(self, flat: Tensor, members: Sequence[MemberConfig]) -> None:
        self.flat = flat
        self.kind, self.momentum = members[0].optimizer, members[0].momentum
        self.rate, self.decay = (
            torch.tensor([getattr(member, name) for member in members], dtype=flat.dtype, device=flat.device)[:, None]
            for name in ("learning_rate", "weight_decay")
        )
        self.has_decay = bool(self.decay.any())
        self.first, self.second = torch.zeros_like(flat), torch.zeros_like(flat)
        self.steps = 0

    @torch.no_grad()
    def step(self, gradients: Tensor, rate_factor: float) -> None:
        """Change the parameters by (M, P) gradients."""
        self.steps += 1
        rate = self.rate * rate_factor
        if self.has_decay and self.kind == "adamw":
            self.flat.mul_(1 - rate * self.decay)
        elif self.has_decay:
            gradients = gradients + self.decay * self.flat
        if self.kind == "sgd":
            self.first.mul_(self.momentum).add_(gradients)
            self.flat.sub_(rate * self.first)
            return
        (beta1, beta2), eps = ADAM_BETAS, ADAM_EPS
        self.first.lerp_(gradients, 1 - beta1)
        self.second.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
        scale = self.second.sqrt().div_((1 - beta2**self.steps) ** 0.5).add_(eps)
        self.flat.sub_(self.first.div(scale).mul_(rate / (1 - beta1**self.steps)))


class _Single:
    """One network, trained as anybody would, behind the same methods."""

    def __init__(self, network: nn.Module, member: MemberConfig) -> None:
        self.network = network
        self.rate = member.learning_rate
        settings: dict[str, Any] = {"lr": member.learning_rate, "weight_decay": member.weight_decay}
        if member.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
                network.parameters(), momentum=member.momentum, **settings
            )
        else:
            kind = torch.optim.Adam if member.optimizer == "adam" else torch.optim.AdamW
            self.optimizer = kind(network.parameters(), betas=ADAM_BETAS, eps=ADAM_EPS, **settings)

    def step(self, images: Tensor, labels: Tensor, rate_factor: float) -> None:
        """Train on images (1, B, C, H, W)."""
        self.network.train()
        self.optimizer.zero_grad()
        F.cross_entropy(self.network(images[0]), labels[0]).backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * rate_factor
        self.optimizer.step()

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """(1, B, classes) in eval mode."""
        self.network.eval()
        return self.network(images)[None]

    def tensors(self) -> dict[str, Tensor]:
        """Copies on the CPU of the entries of the state dict, each (1, *shape)."""
        return {name: tensor.detach().clone()[None].cpu() for name, tensor in self.network.state_dict().items()}


def _snapshot(epoch: int, runner: _Stacked | _Single, data: ZooData) -> Snapshot:
    metrics: dict[str, Tensor] = {}
    for block, (images, labels) in data.blocks.items():
        loss, correct = torch.zeros(()), torch.zeros(())
        for part, expected in zip(images.split(EVALUATED_AT_ONCE), labels.split(EVALUATED_AT_ONCE), strict=True):
            scores = runner.scores(part)
            picked = scores.log_softmax(-1).gather(-1, expected.expand(len(scores), -1)[..., None])
            loss = loss - picked.double().sum((1, 2)).cpu()
            correct = correct + (scores.argmax(-1) == expected).sum(1).cpu()
        # A diverged member has no accuracy: argmax of NaN would count as the class it happens to return.
        metrics[f"{block}_loss"] = loss / len(labels)
        metrics[f"{block}_accuracy"] = torch.where(loss.isnan(), math.nan, correct.double() / len(labels))
    return Snapshot(epoch=epoch, tensors=runner.tensors(), metrics=metrics)


def _draws(members: Sequence[MemberConfig]) -> Tensor:
    """Random state for what the networks draw during training (drop-out)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(members[0].seed)
        return torch.get_rng_state()


def _aliases(model: nn.Module) -> dict[str, str]:
    """Key of the state dict -> name among parameters and buffers, which lists tied tensors once."""
    first = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    return {name: first[id(tensor)] for name, tensor in model.state_dict(keep_vars=True).items()}


def _draw_weights(model: nn.Module, init: Init) -> None:
    draw = getattr(nn.init, f"{init}_")
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            draw(module.weight)
            if module.bias is not None:
                nn.init.constant_(module.bias, BIAS)


def _now(images: Tensor) -> float:
    """Seconds: of this process on a CPU, which others may be using; else after the device has done its work."""
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() if images.is_cuda else time.process_time()


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))

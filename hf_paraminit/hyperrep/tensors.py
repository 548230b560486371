"""What the tensors of a network are: the part of a layout that needs the network itself.

Names decide little (a `downsample.1` is a batch norm in ResNet and a convolution in ConvNeXt), so the owning module is
asked wherever there is one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvTransposeNd

from hf_paraminit.errors import CheckpointError

Kind = Literal["matrix", "norm", "vector", "statistic", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One entry of a state dict.

    Attributes:
        name: Key in the state dict.
        shape: Its shape.
        dtype: Name of its dtype in torch, such as "float32".
        kind: "matrix" (weights of linear maps, convolutions, embeddings, and other parameters of two axes or more),
            "norm" (scale or shift of a norm layer), "vector" (other parameters), "statistic" (floating buffers, such
            as running means) or "other" (integer buffers and empty tensors, which are no weights).
        bias: Key of the bias that belongs to this weight, None without one.
        tied_to: Key of the earlier entry that is the same tensor.
        is_head: Whether it belongs to the classifier.
        num_embeddings: Rows of an embedding table, 0 for anything else.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: Kind
    bias: str | None = None
    tied_to: str | None = None
    is_head: bool = False
    num_embeddings: int = 0

    @property
    def numel(self) -> int:
        """Number of values."""
        return torch.Size(self.shape).numel()

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype."""
        return getattr(torch, self.dtype)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            CheckpointError: These are not the values of a tensor.
        """
        try:
            spec = cls(**{**values, "shape": tuple(int(size) for size in values["shape"])})
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"a layout describes a tensor by {dict(values)!r:.200}: {error}") from error
        if spec.kind not in KINDS or not isinstance(getattr(torch, spec.dtype, None), torch.dtype):
            raise CheckpointError(f"a layout gives the tensor {spec.name} the kind {spec.kind!r}, dtype {spec.dtype!r}")
        return spec


def describe_module(model: nn.Module, *, head: str | None = None) -> tuple[TensorSpec, ...]:
    """Describe the entries of a network's state dict, in its order.

    Args:
        model: Network on any device, meta included; only shapes, dtypes and classes are looked at.
        head: Name of the classifier's module; None for what timm's `get_classifier` says, else the last linear layer.
    """
    modules = dict(model.named_modules())
    tensors = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if isinstance(tensor, Tensor)}
    prefixes = _head_prefixes(model, modules) if head is None else (f"{head}.",)
    return tuple(_describe(tensors, modules, prefixes))


def describe_state_dict(state_dict: Mapping[str, Tensor]) -> tuple[TensorSpec, ...]:
    """Describe the entries of a state dict whose network is not at hand.

    Without modules, a one-dimensional `weight` counts as a norm's, and the last matrix as the classifier.
    """
    last = next((name for name in reversed([*state_dict]) if state_dict[name].ndim == 2 and "weight" in name), None)
    prefixes = () if last is None else (last.rpartition(".")[0] + ".",)
    return tuple(_describe(state_dict, {}, prefixes))


def _describe(
    tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], head_prefixes: tuple[str, ...]
) -> Iterator[TensorSpec]:
    first_name: dict[Hashable, str] = {}
    for name, tensor in tensors.items():
        owner = modules.get(name.rpartition(".")[0])
        kind = _kind(name, tensor, owner, is_parameter=isinstance(tensor, nn.Parameter) or not modules)
        earlier = first_name.setdefault(_identity(tensor), name)
        yield TensorSpec(
            name=name,
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            kind=kind,
            bias=_bias_of(name, tensor, kind, owner, tensors),
            tied_to=None if earlier == name else earlier,
            is_head=name.startswith(head_prefixes),
            num_embeddings=tensor.shape[0] if isinstance(owner, nn.Embedding) else 0,
        )


def _kind(name: str, tensor: Tensor, owner: nn.Module | None, *, is_parameter: bool) -> Kind:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return "other"
    leaf = name.rpartition(".")[2]
    if not is_parameter or leaf in ("running_mean", "running_var"):
        return "statistic"
    if isinstance(owner, _NORMS):
        return "norm"
    if tensor.ndim <= 1:
        is_norm = leaf == "weight" if owner is None else "norm" in type(owner).__name__.lower()
        return "norm" if is_norm else "vector"
    return "vector" if tensor.shape[0] == 1 and not hasattr(owner, "weight") else "matrix"


def _bias_of(
    name: str, tensor: Tensor, kind: Kind, owner: nn.Module | None, tensors: Mapping[str, Tensor]
) -> str | None:
    """Key of the bias with one value per row of this weight. A transposed convolution's rows are its inputs."""
    path, dot, leaf = name.rpartition(".")
    bias = f"{path}{dot}{leaf.replace('weight', 'bias')}"
    if kind not in ("matrix", "norm") or bias == name or bias not in tensors or isinstance(owner, _ConvTransposeNd):
        return None
    expected = tensor.shape if kind == "norm" else tensor.shape[:1]
    return bias if tensors[bias].shape == expected and tensors[bias].dtype == tensor.dtype else None


def _identity(tensor: Tensor) -> Hashable:
    """Equal for entries that are one tensor; plain tensors that share their memory count as one, too."""
    if isinstance(tensor, nn.Parameter) or tensor.is_meta or tensor.numel() == 0:
        return id(tensor)
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _head_prefixes(model: nn.Module, modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Where the classifier's names begin: what the model says (there may be two), else its last linear layer."""
    get_classifier = getattr(model, "get_classifier", None)
    if callable(get_classifier):
        declared = get_classifier()
        heads = declared if isinstance(declared, tuple) else (declared,)
        return tuple(f"{name}." for name, module in modules.items() if name and any(module is head for head in heads))
    linear = [name for name, module in modules.items() if name and isinstance(module, nn.Linear)]
    return tuple(f"{name}." for name in linear[-1:])

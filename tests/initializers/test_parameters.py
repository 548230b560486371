"""Parameters that are no plain tensors: each works, or is refused by name and nothing changes."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import cpu_offload, disk_offload, dispatch_model
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

import hf_paraminit
from hf_paraminit.errors import PredictionError

CPU = torch.device("cpu")
ALL = ["0.weight", "0.bias", "3.weight", "3.bias"]


def make_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


@pytest.fixture
def expected() -> dict[str, Tensor]:
    """What the predictor gives for a plain model."""
    model = make_model()
    hf_paraminit.initialize(model, "ghn3")
    return dict(model.state_dict())


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """A device mesh of this one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def local(tensor: Tensor) -> Tensor:
    return tensor.detach().to_local() if hasattr(tensor, "to_local") else tensor.detach()


def refused(model: nn.Module, *parts: str) -> None:
    """The model is refused with these parts in the message, and stays as it was."""
    before = {name: (id(parameter), local(parameter).clone()) for name, parameter in model.named_parameters()}
    with pytest.raises(PredictionError) as raised:
        hf_paraminit.initialize(model, "ghn3")
    assert [part for part in (*parts, "nothing was written") if part not in str(raised.value)] == []
    for name, parameter in model.named_parameters():
        assert id(parameter) == before[name][0]
        assert parameter.is_meta or torch.equal(local(parameter), before[name][1]), name
    assert not hasattr(model, "_hf_paraminit")


# Sharded


def test_one_sharded_parameter(mesh: DeviceMesh, expected: dict[str, Tensor]) -> None:
    model = make_model()
    model[3].weight = nn.Parameter(distribute_tensor(model[3].weight.detach(), mesh, [Shard(0)]))
    refused(model, "3.weight: is a DTensor", "before quantizing or sharding")
    report = hf_paraminit.initialize(model, "ghn3", names=["0.weight", "3.bias"])
    assert list(report.predicted) == ["0.weight", "3.bias"]
    assert torch.equal(model[0].weight, expected["0.weight"])


def test_a_model_sharded_by_fsdp(mesh: DeviceMesh) -> None:
    model = fully_shard(make_model(), mesh=mesh)
    refused(model, *(f"{name}: is a DTensor" for name in ALL))


def test_initializing_before_sharding_works(mesh: DeviceMesh, expected: dict[str, Tensor]) -> None:
    """The way out that the message names."""
    model = make_model()
    hf_paraminit.initialize(model, "ghn3")
    fully_shard(model, mesh=mesh)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.full_tensor(), expected[name])


def test_parameters_split_by_deepspeed(expected: dict[str, Tensor]) -> None:
    """DeepSpeed is not here: its marks are, as ZeRO-3 leaves them on a split and on a gathered parameter."""
    model = make_model()
    full = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for index, parameter in enumerate(model.parameters()):
        parameter.ds_id, parameter.ds_shape = index, parameter.shape
        parameter.data = torch.empty(0)
    refused(model, "Faults: 4", "3.weight: holds 0 elements of (2, 4)", "GatheredParameters")
    for name, parameter in model.named_parameters():
        parameter.data = full[name]
    hf_paraminit.initialize(model, "ghn3", distributed="off")
    assert all(torch.equal(parameter, expected[name]) for name, parameter in model.named_parameters())


# Quantized


class PackedTensor(Tensor):
    """Small integers that pass for float32, as quantization libraries make them."""

    codes: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor) -> "PackedTensor":
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: Tensor) -> None:
        self.codes = codes

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes"], None

    @staticmethod
    def __tensor_unflatten__(tensors: dict[str, Tensor], *_: Any) -> "PackedTensor":
        return PackedTensor(tensors["codes"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return PackedTensor(args[0].codes)
        raise NotImplementedError(f"{func} on packed weights")


def test_packed_weights_of_a_tensor_subclass(expected: dict[str, Tensor]) -> None:
    model = make_model()
    codes = torch.ones(2, 4, dtype=torch.int8)
    model[3].weight = nn.Parameter(PackedTensor(codes), requires_grad=False)
    packed = model[3].weight
    before = model[0].weight.clone()
    with pytest.raises(PredictionError, match=r"3.weight: is a PackedTensor; initialize before quantizing"):
        hf_paraminit.initialize(model, "ghn3")
    assert model[3].weight is packed
    assert torch.equal(codes, torch.ones_like(codes))
    assert torch.equal(model[0].weight, before)


def test_layers_whose_weights_are_no_parameters_any_more(expected: dict[str, Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that these functions will move
        model = torch.ao.quantization.quantize_dynamic(make_model(), {nn.Linear})
        all_quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear})
    before = model[3].weight().clone()
    report = hf_paraminit.initialize(model, "ghn3")
    assert list(report.predicted) == ["0.weight", "0.bias"]
    assert model[0].weight.isfinite().all()
    assert torch.equal(model[3].weight().int_repr(), before.int_repr())
    with pytest.raises(PredictionError, match="Sequential has no parameters"):
        hf_paraminit.initialize(all_quantized, "ghn3")


# Offloaded by Accelerate


@pytest.mark.parametrize("to_disk", [False, True])
def test_an_offloaded_model_is_left_alone(to_disk: bool, tmp_path: Path) -> None:
    model = make_model().eval()
    images = torch.randn(1, 3, 8, 8)
    before = model(images)
    if to_disk:
        disk_offload(model, tmp_path, execution_device=CPU)
    else:
        cpu_offload(model, execution_device=CPU)
    with pytest.warns(UserWarning, match="wrote nothing: Sequential is on the meta device"):
        report = hf_paraminit.initialize(model, "ghn3")
    assert report.skipped_reason == "meta"
    assert set(report.kept) == set(ALL)
    assert torch.equal(model(images), before)


def test_a_partly_offloaded_model(tmp_path: Path, expected: dict[str, Tensor]) -> None:
    model = make_model().eval()
    images = torch.randn(1, 3, 8, 8)
    dispatch_model(model, {"0": "cpu", "1": "cpu", "2": "cpu", "3": "disk"}, offload_dir=tmp_path)
    before = model(images)
    refused(model, "3.weight: is on the meta device", "3.bias: is on the meta device")
    assert torch.equal(model(images), before)
    hf_paraminit.initialize(model, "ghn3", names=["0.weight"])  # what is here can be written
    assert torch.equal(model[0].weight, expected["0.weight"])
    assert not torch.equal(model(images), before)


def test_hooks_of_accelerate_on_the_target_do_not_change_the_values(expected: dict[str, Tensor]) -> None:
    """Neither while the target is traced, nor when the predictor has such hooks too."""
    model = make_model()
    dispatch_model(model, {"": "cpu"}, force_hooks=True)
    hf_paraminit.initialize(model, "ghn3", device="auto")
    assert all(torch.equal(parameter, expected[name]) for name, parameter in model.named_parameters())
    hf_paraminit.clear_cache()


# Wrapped


@pytest.mark.parametrize(
    ("wrap", "prefix"), [(torch.compile, "_orig_mod."), (nn.DataParallel, "module.")], ids=["compile", "DataParallel"]
)
def test_wrapped_models_are_written_through_the_wrapper(wrap: Any, prefix: str, expected: dict[str, Tensor]) -> None:
    model = make_model()
    report = hf_paraminit.initialize(wrap(model), "ghn3")
    assert list(report.predicted) == [prefix + name for name in ALL]
    assert all(torch.equal(parameter, expected[name]) for name, parameter in model.named_parameters())

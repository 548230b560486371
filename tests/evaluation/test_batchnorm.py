import copy
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from hf_paraminit.errors import PredictionError
from hf_paraminit.evaluation.batchnorm import normalize_inputs, recalibrate_batchnorm


class Net(nn.Module):
    """Two batch norms in use, one that no forward pass reaches, one without statistics, and dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3, momentum=0.3)
        self.drop = nn.Dropout(0.5)
        self.second = nn.BatchNorm2d(3)
        self.unused = nn.BatchNorm2d(3)
        self.stateless = nn.BatchNorm2d(3, track_running_stats=False)
        self.layer_norm = nn.GroupNorm(1, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.stateless(self.layer_norm(self.second(self.drop(self.first(images)))))


@pytest.fixture
def net() -> Net:
    net = Net()
    for buffer in net.buffers():
        buffer.fill_(5)
    net.unused.eval()
    return net


@pytest.fixture
def batches() -> list[Tensor]:
    return [torch.randn(size, 3, 4, 4) * (index + 1) + index for index, size in enumerate((8, 8, 4))]


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def expected_mean(batches: list[Tensor]) -> Tensor:
    return torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)


def expected_var(batches: list[Tensor]) -> Tensor:
    return torch.stack([batch.transpose(0, 1).flatten(1).var(1, unbiased=True) for batch in batches]).mean(0)


def test_statistics_are_the_plain_average_over_batches(net: Net, batches: list[Tensor]) -> None:
    assert recalibrate_batchnorm(net, batches) == 2
    torch.testing.assert_close(net.first.running_mean, expected_mean(batches))
    torch.testing.assert_close(net.first.running_var, expected_var(batches))
    assert net.first.num_batches_tracked == 3


def test_other_modules_run_in_evaluation_mode(net: Net, batches: list[Tensor]) -> None:
    recalibrate_batchnorm(net, batches)
    # without dropout the second layer sees what the first one normalised with each batch's own statistics
    torch.testing.assert_close(net.second.running_mean, torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(net.second.running_var, torch.ones(3), atol=0.02, rtol=0)


def test_everything_else_is_as_before(net: Net, batches: list[Tensor]) -> None:
    modes = {name: module.training for name, module in net.named_modules()}
    momenta = [module.momentum for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    parameters = [parameter.clone() for parameter in net.parameters()]
    state = torch.get_rng_state()
    loader = torch.utils.data.DataLoader(torch.cat(batches), batch_size=5, shuffle=True)
    recalibrate_batchnorm(net, loader)
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert [module.momentum for module in net.modules() if isinstance(module, nn.BatchNorm2d)] == momenta
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(net.parameters(), parameters, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_layers_that_are_not_reached_keep_their_statistics(net: Net, batches: list[Tensor]) -> None:
    recalibrate_batchnorm(net, batches)
    assert torch.equal(net.unused.running_mean, torch.full((3,), 5.0))
    assert net.unused.num_batches_tracked == 5


def test_number_of_batches(net: Net, batches: list[Tensor]) -> None:
    recalibrate_batchnorm(net, batches, num_batches=2)
    torch.testing.assert_close(net.first.running_mean, expected_mean(batches[:2]))
    with pytest.raises(PredictionError, match="num_batches must be at least 1"):
        recalibrate_batchnorm(net, batches, num_batches=0)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda images: (images, torch.zeros(1)),
        lambda images: [images],
        lambda images: {"labels": 0, "pixel_values": images},
    ],
)
def test_batches_with_labels(wrap: Any, net: Net, batches: list[Tensor]) -> None:
    recalibrate_batchnorm(net, [wrap(images) for images in batches])
    torch.testing.assert_close(net.first.running_mean, expected_mean(batches))


def test_integer_images_are_not_cast() -> None:
    class Bytes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def forward(self, images: Tensor) -> Tensor:
            assert images.dtype == torch.uint8
            return self.norm(images / 255)

    net = Bytes()
    recalibrate_batchnorm(net, [torch.full((2, 1, 2, 2), 255, dtype=torch.uint8)])
    assert net.norm.running_mean == 1


def test_models_without_batch_norm_need_no_data() -> None:
    def never() -> Iterator[Tensor]:
        raise AssertionError
        yield

    assert recalibrate_batchnorm(nn.Linear(2, 2), never()) == 0


@pytest.mark.parametrize(
    ("loader", "complaint"),
    [
        ([], "gave no batches"),
        ([torch.randn(4, 3, 2, 2), torch.full((4, 3, 2, 2), float("nan"))], "became NaN or infinite in 2 of 3 layers"),
        ([torch.randn(4, 3, 2, 2), {"label": 1}], "A batch must be an image tensor"),
        ([torch.randn(4, 3, 2, 2), ()], "A batch must be an image tensor"),
    ],
)
def test_failures_leave_the_model_as_it_was(loader: list[Any], complaint: str, net: Net) -> None:
    before, modes = statistics(net), [module.training for module in net.modules()]
    with pytest.raises(PredictionError, match=complaint):
        recalibrate_batchnorm(net, loader)
    assert_as_before(net, before, modes)


def test_an_interrupt_leaves_the_model_as_it_was(net: Net) -> None:
    def interrupted() -> Iterator[Tensor]:
        yield torch.randn(4, 3, 2, 2)
        raise KeyboardInterrupt

    before, modes = statistics(net), [module.training for module in net.modules()]
    with pytest.raises(KeyboardInterrupt):
        recalibrate_batchnorm(net, interrupted())
    assert_as_before(net, before, modes)


def assert_as_before(net: Net, before: dict[str, Tensor], modes: list[bool]) -> None:
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert [module.training for module in net.modules()] == modes
    assert net.first.momentum == 0.3


def test_meta_models_are_refused(batches: list[Tensor]) -> None:
    with pytest.raises(PredictionError, match="meta device"):
        recalibrate_batchnorm(Net().to("meta"), batches)


def test_timm_model_in_bfloat16() -> None:
    model = timm.create_model("test_resnet").eval()
    low = copy.deepcopy(model).bfloat16()
    images = [torch.randn(4, 3, 64, 64) for _ in range(2)]
    layers = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert recalibrate_batchnorm(model, images) == recalibrate_batchnorm(low, images) == layers
    first, low_first = (next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)) for net in (model, low))
    torch.testing.assert_close(low_first.running_mean.float(), first.running_mean, atol=0.02, rtol=0.05)


@pytest.mark.parametrize("name", ["test_resnet", "densenet121", "mobilenetv3_small_050"])
def test_normalized_inputs_have_unit_variance_and_change_nothing_else(name: str) -> None:
    settings = {"growth_rate": 8, "block_config": (2, 2)} if name == "densenet121" else {}
    model = timm.create_model(name, num_classes=10, **settings)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    state = torch.random.get_rng_state()
    factors = normalize_inputs(model, images)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert factors
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] * factors.get(key, 1.0)), key
    # Nearly, since a batch norm adds its epsilon to the variance.
    assert normalize_inputs(model, images) == {key: pytest.approx(1.0, rel=3e-2) for key in factors}


def test_without_batch_norms_no_input_is_normalized() -> None:
    model = timm.create_model("test_vit", num_classes=10)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert normalize_inputs(model, torch.randn(2, 3, 160, 160)) == {}
    assert all(map(torch.equal, model.parameters(), before))

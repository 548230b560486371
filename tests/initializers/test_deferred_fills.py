"""Leaving out random draws changes nothing but the time: every tensor ends with the values its own code gives it."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hf_paraminit.initializers.deferred_fills import MIN_ELEMENTS, DeferredFills, can_defer

SIDE = 128  # SIDE ** 2 is well above MIN_ELEMENTS
assert SIDE**2 > MIN_ELEMENTS


def weight() -> nn.Parameter:
    return nn.Parameter(torch.empty(SIDE, SIDE))


def is_filled(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


@pytest.fixture(autouse=True)
def _empty_memory_holds_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def record(work: Callable[[], object]) -> tuple[DeferredFills, object]:
    torch.manual_seed(0)
    fills = DeferredFills()
    with fills.recording():
        result = work()
    return fills, result


def test_a_large_fill_waits_and_is_drawn_in_the_end() -> None:
    fills, linear = record(lambda: nn.Linear(SIDE, SIDE))
    assert isinstance(linear, nn.Linear)
    assert fills
    assert not is_filled(linear.weight)
    assert is_filled(linear.bias)
    fills.finish()
    assert not fills
    assert is_filled(linear.weight)
    bound = SIDE**-0.5
    assert linear.weight.abs().max() <= bound
    assert abs(linear.weight.std() / (bound / 3**0.5) - 1) < 0.05
    assert fills.num_skipped == 0


def test_drawing_later_gives_the_same_numbers_when_nothing_was_drawn_in_between() -> None:
    fills, deferred = record(lambda: nn.init.trunc_normal_(weight(), std=0.02))
    fills.finish()
    torch.manual_seed(0)
    assert torch.equal(deferred, nn.init.trunc_normal_(weight(), std=0.02))


@pytest.mark.parametrize(
    "fill",
    [
        lambda w: nn.init.kaiming_normal_(w).mul_(0.5).add_(1),
        lambda w: nn.init.trunc_normal_(w, std=0.02).div_(3).sub_(0.1),
        lambda w: nn.init.uniform_(w).data[3:7].zero_(),
        lambda w: nn.init.normal_(w).data.t()[:5].fill_(2.0),
        lambda w: nn.init.normal_(w).clamp_(min=0)[0].uniform_(5, 6),
        lambda w: nn.init.orthogonal_(w),
        lambda w: w.copy_(torch.randn(SIDE, SIDE)),
        lambda w: nn.init.normal_(w).mul_(torch.arange(SIDE)),
        lambda w: nn.init.normal_(w).div_(w.norm()),
        lambda w: nn.init.normal_(w).copy_(w.t().clone()),
        lambda w: nn.init.normal_(w, generator=torch.Generator().manual_seed(1)),
        lambda w: nn.init.normal_(w).fill_(4.0),
        lambda w: w.data.normal_().resize_(SIDE, SIDE).add_(1),
    ],
)
def test_arithmetic_on_waiting_values_is_the_same(fill: Callable[[Tensor], object]) -> None:
    def work() -> nn.Parameter:
        parameter = weight()
        with torch.no_grad():
            fill(parameter)
        return parameter

    fills, deferred = record(work)
    fills.finish()
    torch.manual_seed(0)
    assert isinstance(deferred, Tensor)
    assert torch.equal(deferred, work())


@pytest.mark.parametrize(
    "read",
    [
        lambda w: w.clone(),
        lambda w: copy.deepcopy(w),
        lambda w: w.data.sum(),
        lambda w: w.detach()[0] * 2,
        lambda w: torch.cat([w, w]),
        lambda w: w.mean().item(),
        lambda w: float(w.data[0, 0]),
        lambda w: w.tolist(),
        lambda w: w.detach().numpy().copy(),
        lambda w: np.asarray(w.detach()).copy(),
        lambda w: w.detach().view(-1).numpy().copy(),
        lambda w: nn.Parameter(w.detach().clone()),
        lambda w: torch.linalg.qr(w).R,
        lambda w: torch.zeros(SIDE, SIDE).copy_(w),
        lambda w: w.to(torch.float64),
        lambda w: nn.functional.linear(torch.ones(1, SIDE), w),
        lambda w: repr(w),
        lambda w: torch.utils.dlpack.from_dlpack(w.detach()).clone(),
    ],
)
def test_whoever_reads_a_waiting_tensor_finds_its_values(read: Callable[[Tensor], object]) -> None:
    _fills, found = record(lambda: read(nn.init.normal_(weight())))
    torch.manual_seed(0)
    expected = read(nn.init.normal_(weight()))
    if isinstance(expected, Tensor):
        assert isinstance(found, Tensor)
        assert torch.equal(found, expected)
    else:
        assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_reading_the_layout_leaves_a_tensor_waiting() -> None:
    fills, _ = record(
        lambda: (w := nn.init.normal_(weight()), w.shape, w.data.stride(), torch.zeros_like(w), w.detach().view(-1))
    )
    assert fills


def test_a_number_in_a_tensor_counts_as_it_was() -> None:
    def work() -> nn.Parameter:
        factor, parameter = torch.tensor(0.5), nn.init.normal_(weight())
        with torch.no_grad():
            parameter.mul_(factor).add_(parameter.new_tensor(1.0), alpha=2)
            factor.fill_(100)
        return parameter

    fills, deferred = record(work)
    assert fills
    fills.finish()
    torch.manual_seed(0)
    assert torch.equal(deferred, work())  # type: ignore[arg-type]


def test_a_second_fill_replaces_the_first() -> None:
    fills, refilled = record(lambda: nn.init.uniform_(nn.init.normal_(weight()), 8, 9))
    fills.finish()
    torch.manual_seed(0)
    assert isinstance(refilled, Tensor)
    assert torch.equal(refilled, nn.init.uniform_(weight(), 8, 9))


@pytest.mark.parametrize(
    "work",
    [
        lambda: nn.init.normal_(torch.empty(MIN_ELEMENTS - 1)),
        lambda: torch.randn(SIDE, SIDE),
        lambda: nn.init.normal_(torch.empty(SIDE, SIDE, device="meta")),
        lambda: nn.init.normal_(torch.from_numpy(np.zeros((SIDE, SIDE)))),
        lambda: torch.empty(2 * SIDE, SIDE)[:SIDE].normal_(),
        lambda: nn.init.zeros_(torch.empty(SIDE, SIDE)),
        lambda: nn.init.normal_(torch.empty(SIDE, SIDE).t()),
    ],
)
def test_other_fills_do_not_wait(work: Callable[[], Tensor]) -> None:
    fills, result = record(work)
    assert not fills
    assert isinstance(result, Tensor)
    assert result.is_meta or is_filled(result)


def test_an_error_leaves_nothing_waiting() -> None:
    kept = weight()

    def fail() -> None:
        nn.init.normal_(kept)
        raise ZeroDivisionError

    fills = DeferredFills()
    with pytest.raises(ZeroDivisionError), fills.recording():
        fail()
    assert not fills
    assert is_filled(kept)


def built(work: Callable[[], nn.Module]) -> tuple[DeferredFills, Any]:
    fills, model = record(work)
    assert isinstance(model, nn.Module)
    fills.assign(model)
    return fills, model


def test_only_parameters_that_are_a_whole_storage_of_their_own_stay_waiting() -> None:
    class Sharing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = weight()
            self.tied_twice = self.own
            self.register_buffer("noise", torch.empty(SIDE, SIDE).normal_())
            both = torch.empty(2, SIDE, SIDE).normal_()
            self.first, self.second = nn.Parameter(both[0]), nn.Parameter(both[1])
            self.loose = torch.empty(SIDE, SIDE).normal_()
            self.seen = weight()
            self.view = nn.init.normal_(self.seen).detach()
            self.partly = nn.init.normal_(weight())
            self.partly.data[3].zero_()
            nn.init.normal_(self.own)

    fills, model = built(Sharing)
    assert [name for name, parameter in model.named_parameters() if parameter in fills] == ["own"]
    others = (model.noise, model.first, model.second, model.loose, model.view, model.partly)
    assert all(tensor.abs().max() > 1 for tensor in others)
    assert model.view.data_ptr() == model.seen.data_ptr()
    assert not model.partly[3].any()


def test_what_waits_takes_no_memory_and_is_safe_to_read() -> None:
    fills, linear = built(lambda: nn.Linear(SIDE, SIDE, bias=False))
    assert linear.weight.untyped_storage().nbytes() < 100
    assert linear.weight.shape == (SIDE, SIDE)
    assert not linear.weight.any()
    fills.finish()
    torch.manual_seed(0)
    assert torch.equal(linear.weight, nn.Linear(SIDE, SIDE, bias=False).weight)
    assert linear.weight.is_contiguous()


def test_a_parameter_adopts_the_memory_of_a_value_that_nobody_else_holds() -> None:
    fills, linear = built(lambda: nn.Linear(SIDE, SIDE))
    value = torch.ones(SIDE, SIDE)
    address, parameter = value.data_ptr(), linear.weight
    assert fills.adopt(linear.weight, value)
    assert linear.weight is parameter
    assert linear.weight.data_ptr() == address
    assert linear.weight.requires_grad
    assert not fills
    assert fills.num_skipped == SIDE**2


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(SIDE, SIDE, dtype=torch.float64),
        torch.ones(SIDE, SIDE).t(),
        torch.ones(2, SIDE, SIDE)[0],
        torch.from_numpy(np.ones((SIDE, SIDE), dtype=np.float32)),
    ],
)
def test_any_other_value_is_left_to_be_copied(value: Tensor) -> None:
    fills, linear = built(lambda: nn.Linear(SIDE, SIDE))
    assert not fills.adopt(linear.weight, value)
    assert linear.weight.data_ptr() != value.data_ptr()
    assert linear.weight.untyped_storage().nbytes() == linear.weight.nbytes
    assert not fills


def test_a_value_that_somebody_else_looks_at_is_not_adopted() -> None:
    fills, linear = built(lambda: nn.Linear(SIDE, SIDE))
    value = torch.ones(SIDE, SIDE)
    view = value.detach()
    assert not fills.adopt(linear.weight, value)
    assert view.data_ptr() != linear.weight.data_ptr()


def test_nothing_is_deferred_while_others_watch_the_operations() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert can_defer()
    with FakeTensorMode():
        assert not can_defer()
    with torch.inference_mode():
        assert not can_defer()

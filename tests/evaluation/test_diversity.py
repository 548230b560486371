import pytest
import torch

from hf_paraminit.evaluation.diversity import MAX_TENSORS, diversity


def test_pairs_of_one_shape_are_compared_within_and_across_networks() -> None:
    first = {"a": torch.tensor([[1.0, 0.0]]), "b": torch.tensor([[0.0, 2.0]]), "c": torch.tensor([3.0, 3.0])}
    second = {"a": torch.tensor([[-5.0, 0.0]]), "c": torch.tensor([4.0, 4.0])}
    found = diversity([first, second])
    assert found["pairs"] == 3 + 1
    assert found["kernels"] == pytest.approx((1 + 2 + 1) / 3)  # cosines 0, -1, 0
    assert found["up_to_sign"] == pytest.approx((1 + 0 + 1) / 3)
    assert found["all"] == pytest.approx((1 + 2 + 1 + 0) / 4)


def test_equal_tensors_have_no_diversity_and_random_ones_much() -> None:
    tensor = torch.randn(20, 30)
    assert diversity([{"a": tensor, "b": 2 * tensor}])["all"] == pytest.approx(0, abs=1e-6)
    assert diversity([{"a": tensor, "b": torch.randn(20, 30)}])["all"] == pytest.approx(1, abs=0.2)


def test_without_pairs_there_is_no_number() -> None:
    found = diversity([{"a": torch.ones(3), "b": torch.ones(4), "zero": torch.zeros(3)}])
    assert found == {"pairs": 0}


def test_of_many_tensors_some_count() -> None:
    found = diversity({"a": torch.randn(4)} for _ in range(MAX_TENSORS + 20))
    assert found["pairs"] == MAX_TENSORS * (MAX_TENSORS - 1) / 2

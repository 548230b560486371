import pytest
import torch

from hf_paraminit.resizing.spectrum import resized_spectrum


def test_the_same_shape_changes_nothing() -> None:
    tensor = torch.randn(4, 6, 5)
    torch.testing.assert_close(resized_spectrum(tensor, tensor.shape), tensor, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(3, 4), (8, 12), (3, 12)])
def test_constants_stay_constant(shape: tuple[int, int]) -> None:
    torch.testing.assert_close(resized_spectrum(torch.full((6, 8), 2.5), shape), torch.full(shape, 2.5))


def test_enlarging_and_cutting_again_gives_the_tensor_back() -> None:
    tensor = torch.randn(4, 6)
    torch.testing.assert_close(resized_spectrum(resized_spectrum(tensor, (8, 9)), (4, 6)), tensor, atol=1e-5, rtol=0)


def test_a_wave_keeps_its_shape() -> None:
    def wave(size: int) -> torch.Tensor:
        return torch.cos(torch.pi * (torch.arange(size) + 0.5) / size)

    torch.testing.assert_close(resized_spectrum(wave(32), (16,)), wave(16), atol=1e-5, rtol=0)

import timm
import torch
from torch import nn

import hf_paraminit


def test_outputs_repeat_inputs() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 10), nn.Linear(10, 2))
    hf_paraminit.initialize(model, "idinit", names=["1.weight"], example_inputs=torch.randn(2, 4))
    features = torch.randn(3, 4)
    torch.testing.assert_close(model[1].weight @ features.T, features.T[torch.arange(10) % 4])


def test_kernels_are_matrices_over_the_patch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 20, 2), nn.Flatten(), nn.Linear(20 * 9, 2))
    hf_paraminit.initialize(model, "idinit", input_size=4)
    matrix = model[0].weight.flatten(1)
    assert torch.equal(matrix[:12], torch.eye(12))
    assert torch.equal(matrix[12:], torch.eye(8, 12))


def test_last_layers_are_next_to_zero_but_not_dead() -> None:
    model = timm.create_model("test_resnet")
    hf_paraminit.initialize(model, "idinit")
    for weight in (model.fc.weight, model.layer1[0].conv2.weight):
        values = weight.detach()[weight != 0]
        assert values.abs().eq(torch.tensor(1e-6)).all()
        assert values.min() < 0 < values.max()


def test_noise_breaks_the_symmetry() -> None:
    model = timm.create_model("test_resnet")
    hf_paraminit.initialize(model, "idinit", noise=1e-3)
    assert model.layer1[0].conv1.weight.unique().numel() > 1000

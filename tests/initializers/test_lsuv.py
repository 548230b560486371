from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import hf_paraminit
from hf_paraminit.errors import InitializerConfigError


def mlp() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(48, 32)]
    for _ in range(6):
        layers += [nn.Tanh(), nn.Linear(32, 32)]
    return nn.Sequential(*layers)


def output_variances(model: nn.Module, batch: Tensor) -> list[float]:
    found: list[float] = []
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.register_forward_hook(lambda module, inputs, output: found.append(output.var(correction=0).item()))
    with torch.no_grad():
        model(batch)
    return found


@pytest.mark.parametrize("mode", ["fast", "passes"])
def test_every_layer_has_unit_output_variance_on_the_batch(mode: str) -> None:
    model, batch = mlp(), 3 * torch.randn(64, 3, 4, 4) + 1
    hf_paraminit.initialize(model, "lsuv", data=batch, mode=mode)
    assert all(abs(variance - 1) < 0.1 for variance in output_variances(model, batch))


def test_both_modes_agree_on_a_feed_forward_network() -> None:
    fast, passes, batch = mlp(), mlp(), torch.randn(64, 3, 4, 4)
    hf_paraminit.initialize(fast, "lsuv", data=batch)
    hf_paraminit.initialize(passes, "lsuv", data=batch, mode="passes")
    for one, other in zip(fast.parameters(), passes.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_weights_stay_orthogonal_up_to_scale() -> None:
    model = mlp()
    hf_paraminit.initialize(model, "lsuv", data=torch.randn(64, 3, 4, 4))
    gram = (model[3].weight @ model[3].weight.T).detach()
    torch.testing.assert_close(gram / gram[0, 0], torch.eye(32), atol=1e-4, rtol=0)


def test_fast_mode_needs_one_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = mlp(), []
    forward = nn.Flatten.forward
    monkeypatch.setattr(nn.Flatten, "forward", lambda self, images: calls.append(1) or forward(self, images))
    hf_paraminit.initialize(model, "lsuv", data=torch.randn(8, 3, 4, 4))
    assert len(calls) == 1


def test_noise_of_the_models_input_size_by_default_and_the_report_says_so() -> None:
    report = hf_paraminit.initialize(timm.create_model("test_convnext"), "lsuv", batch_size=8)
    assert any("(8, 3, 160, 160)" in note for note in report.notes)


def test_norms_use_the_batch_and_running_statistics_stay() -> None:
    model = timm.create_model("test_resnet")
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    hf_paraminit.initialize(model, "lsuv", batch_size=8)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert model.training


class DeadEnd(nn.Module):
    """No signal reaches the second layer; the third standardizes its own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.scale = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Parameter(torch.zeros(()))
        self.third = StandardizedConv(4, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images)
        return self.second(self.scale * features) + self.third(features)


class StandardizedConv(nn.Conv2d):
    def forward(self, images: Tensor) -> Tensor:
        weight = 5 * self.weight / self.weight.norm()
        return nn.functional.conv2d(images, weight, self.bias)


def test_layers_that_cannot_be_rescaled_stay_orthogonal() -> None:
    model = DeadEnd()
    report = hf_paraminit.initialize(model, "lsuv", data=torch.randn(16, 3, 4, 4))
    for layer in (model.second, model.third):
        matrix = layer.weight.detach().flatten(1)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(4), atol=1e-5, rtol=0)
    assert "output variance 0" in report.predicted["second.weight"]


def test_only_the_offered_layers_are_rescaled() -> None:
    model, batch = mlp(), torch.randn(64, 3, 4, 4)
    before = model[1].weight.clone()
    hf_paraminit.initialize(model, "lsuv", names=["13.weight", "13.bias"], data=batch)
    assert torch.equal(model[1].weight, before)
    assert abs(output_variances(model, batch)[-1] - 1) < 0.1


def test_trains_a_deep_network_without_norms_where_torchs_start_stalls() -> None:
    def accuracy(init: Any) -> float:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Flatten(), *(part for _ in range(30) for part in (nn.LazyLinear(48), nn.Tanh())), nn.LazyLinear(2)
        )
        images = torch.randn(256, 3, 4, 4)
        labels = (images.mean((1, 2, 3)) > 0).long()
        model(images)
        hf_paraminit.initialize(model, init, **({"data": images} if init == "lsuv" else {}))
        optimizer = torch.optim.SGD(model.parameters(), 0.02)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        return (model(images).argmax(1) == labels).float().mean().item()

    assert accuracy("lsuv") > 0.8 > 0.65 > accuracy("torch-default")


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"mode": "slow"}])
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InitializerConfigError, match="lsuv"):
        hf_paraminit.initialize(mlp(), "lsuv", **settings)

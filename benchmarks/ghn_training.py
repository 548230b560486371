"""What a meta-training step of GHN-3-T costs beside a straightforward one (meta-batch 8, DeepNets-1M, 32 pixels).

The straightforward step builds every network with real tensors, decodes the largest block (o, c, s, s) for every tensor
and cuts and repeats it, as one would write it from the paper; its loss is the same, which is checked. CPU seconds are
compared, in turns, because a machine may be busy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.measure import Record, parser, prepare, report, save, verdict
from hf_paraminit.deepnets.described import GeneratedNetworks
from hf_paraminit.deepnets.network import DeepNetsNetwork
from hf_paraminit.ghn.decoder import KernelDecoder
from hf_paraminit.ghn.model import GHN
from hf_paraminit.ghn.recipes import published_recipe
from hf_paraminit.ghn.slots import Role, Slot
from hf_paraminit.ghn.train import MetaBatch, MetaTraining, TargetNetworks

LEAST_GAIN = 3.0
NUM_CLASSES = 10
LAST = 10**6 - 1  # a network that no measurement uses


class FullTileDecoder(KernelDecoder):
    """Computes all of the largest block for every tensor, then cuts it."""

    def forward(self, states: Tensor, slots: list[Slot]) -> dict[Slot, Tensor]:  # type: ignore[override]
        """Decode one block per slot."""
        return {slot: self._cut(self._full_block(states[slot.node]), slot) for slot in slots}

    def _full_block(self, state: Tensor) -> Tensor:
        side = self.max_side
        grid = F.relu(self.fc(state)).view(-1, side * side).T
        return self.conv(grid).view(side, side, self.max_outputs, self.max_inputs).permute(2, 3, 0, 1)

    def _cut(self, block: Tensor, slot: Slot) -> Tensor:
        rows, columns = (self._kept_side(size) for size in slot.kernel_size)
        kernel = block[:, : slot.channels[1], rows, columns]
        if slot.role is Role.CLASS_WEIGHT:
            return self.class_layer_predictor(kernel[:, :, 0, 0].T).T[: slot.shape[0], :, None, None]
        return kernel[: slot.channels[0]]


def straightforward_step(
    ghn: GHN, networks: GeneratedNetworks, chosen: list[int], images: Tensor, labels: Tensor
) -> float:
    """One network after the other, with real modules."""
    losses = []
    for index in chosen:
        network = DeepNetsNetwork(**networks.arguments(index))
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.track_running_stats = False
                layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
        weights = ghn.predict(networks.graph(index), shapes)
        logits, _ = functional_call(network, weights, (images,))
        norm = torch.stack([weight.norm() for weight in weights.values()]).sum()
        losses.append(F.cross_entropy(logits, labels) + 3e-5 * norm)
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.item()


def our_step(
    training: MetaTraining, networks: TargetNetworks, chosen: list[int], images: Tensor, labels: Tensor
) -> float:
    """The package's step."""
    loss = training(MetaBatch([networks[index] for index in chosen], images, labels))["loss"]
    loss.backward()
    return loss.item()


def compare(*, meta_batch: int, batch_size: int, repeats: int) -> Record:
    """Time both steps in turns, each on networks that it has not seen."""
    config = published_recipe("ghn3").model
    ghn = GHN.new(config, seed=0)
    straightforward = GHN.new(config, seed=0)
    straightforward.decoder = FullTileDecoder(config)
    straightforward.load_state_dict(ghn.state_dict())
    source = GeneratedNetworks("train", num_classes=NUM_CLASSES)
    targets, training = TargetNetworks(source, kept=1), MetaTraining(ghn)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, 32, 32, generator=generator)
    labels = torch.randint(NUM_CLASSES, (batch_size,), generator=generator)
    our_step(training, targets, [LAST], images[:2], labels[:2])  # whatever is done only once
    straightforward_step(straightforward, source, [LAST], images[:2], labels[:2])
    ours, others, gains = [], [], []
    for turn in range(repeats):
        chosen = list(range(turn * meta_batch, (turn + 1) * meta_batch))
        loss, seconds = _timed(partial(our_step, training, targets, chosen, images, labels))
        expected, other = _timed(partial(straightforward_step, straightforward, source, chosen, images, labels))
        assert abs(loss - expected) < 1e-3 * abs(expected), (loss, expected)
        ours.append(seconds)
        others.append(other)
        gains.append(other / seconds)
    gain = sum(others) / sum(ours)
    return {
        "model": f"meta-batch {meta_batch}, {batch_size} images",
        "networks / CPU s": meta_batch * repeats / sum(ours),
        "straightforward": meta_batch * repeats / sum(others),
        "gain": gain,
        "smallest gain": min(gains),
        "target": verdict(is_met=gain >= LEAST_GAIN),
    }


def _timed(step: Callable[[], float]) -> tuple[float, float]:
    torch.manual_seed(0)  # drop-out
    start = time.process_time()
    loss = step()
    return loss, time.process_time() - start


def main() -> None:
    """Print the table."""
    options = parser(__doc__ or "")
    options.add_argument("--meta-batch", type=int, default=8, help="networks per step (default: 8)")
    options.add_argument("--batch-size", type=int, default=64, help="images per step (default: 64)")
    options.set_defaults(repeats=1)  # a turn takes minutes, and its eight networks differ more than two timings of them
    arguments = options.parse_args()
    prepare(arguments)
    meta_batch, batch_size = (1, 2) if arguments.quick else (arguments.meta_batch, arguments.batch_size)
    records = [compare(meta_batch=meta_batch, batch_size=batch_size, repeats=arguments.repeats)]
    report("Meta-training step of GHN-3-T", records)
    save(arguments, {"steps": records})


if __name__ == "__main__":
    main()

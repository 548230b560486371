"""What a model zoo costs: members trained together beside one after another, and a whole zoo."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from benchmarks.measure import Record, interleaved, parser, prepare, report, save, verdict
from hf_paraminit.hyperrep.zoo_build import STACK_SIZE, ZooPlan, build_zoo
from hf_paraminit.hyperrep.zoo_nets import ZOO_NETS, ZooCNN
from hf_paraminit.hyperrep.zoo_training import MemberConfig, ZooData, train_members

MODELS = ("cnn-tiny", "cnn-small", "cnn-large")
IMAGES = {"train": 1000, "validation": 300, "test": 497}  # as many as scikit-learn's digits
MIN_SPEED_UP = 1.5
MEMBERS, EPOCHS = 200, 25
MAX_SECONDS = 180.0  # for so many members and epochs of cnn-tiny on two cores


def random_data(channels: int, size: int) -> ZooData:
    """Images without meaning: the cost does not depend on it."""
    generator = torch.Generator().manual_seed(0)
    blocks = {
        name: (
            torch.randn(count, channels, size, size, generator=generator),
            torch.randint(10, (count,), generator=generator),
        )
        for name, count in IMAGES.items()
    }
    return ZooData(name="random", **blocks)


def time_stack(name: str, num_members: int, *, repeats: int) -> Record:
    """Compare an epoch of a stack with an epoch of each of its members alone."""
    net = ZOO_NETS[name]
    data = random_data(net.in_chans, net.img_size)
    members = [MemberConfig(seed=seed, epochs=1) for seed in range(num_members)]

    def together() -> None:
        list(train_members(lambda: ZooCNN(name), members, data, []))

    def alone() -> None:
        for member in members:
            list(train_members(lambda: ZooCNN(name), [member], data, [], stacked=False))

    stacked, single = interleaved([together, alone], repeats=repeats)
    return {
        "model": name,
        "members": num_members,
        "together ms / member": 1e3 * stacked / num_members,
        "alone ms / member": 1e3 * single / num_members,
        "speed-up": single / stacked,
    }


def time_zoo(num_members: int, epochs: int, *, processes: int) -> Record:
    """Build a zoo with all its checkpoints, evaluations and files."""
    net = ZOO_NETS["cnn-tiny"]
    plan = ZooPlan.grid(range(num_members), epochs=epochs)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        zoo = build_zoo(
            Path(folder) / "zoo",
            tiny_cnn,
            random_data(net.in_chans, net.img_size),
            plan,
            architecture="cnn-tiny",
            processes=processes,
        )
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        values = sum(tensor.numel() for tensor in zoo.stacked().values())
        reading = time.perf_counter() - start
    scaled = seconds * MEMBERS * EPOCHS / (num_members * epochs)
    is_whole = (num_members, epochs) == (MEMBERS, EPOCHS)
    return {
        "model": "cnn-tiny",
        "members": num_members,
        "epochs": epochs,
        "processes": processes,
        "build s": seconds,
        f"s for {MEMBERS} x {EPOCHS}": scaled,
        "which was": "measured" if is_whole else "extrapolated",
        "read M values / s": values / reading / 1e6,
        "target": f"<= {MAX_SECONDS:.0f} s",
        "result": verdict(is_met=scaled <= MAX_SECONDS),
    }


def tiny_cnn() -> ZooCNN:
    """The network of the target, by a name that worker processes can import."""
    return ZooCNN("cnn-tiny")


def main() -> None:
    """Run the benchmark."""
    options = parser("Cost of training a model zoo.")
    options.add_argument("--members", type=int, default=MEMBERS, help=f"members of the whole zoo (default: {MEMBERS})")
    options.add_argument("--no-stacks", action="store_true", help="build the whole zoo only")
    options.add_argument("--processes", type=int, default=2, help="worker processes (default: 2)")
    arguments = options.parse_args()
    prepare(arguments)
    models, stack = (("cnn-tiny",), 4) if arguments.quick else (MODELS, STACK_SIZE)
    models = () if arguments.no_stacks else models
    stacks = [time_stack(name, stack, repeats=arguments.repeats) for name in models]
    for line in stacks:
        line |= {"target": f">= {MIN_SPEED_UP}", "result": verdict(is_met=line["speed-up"] >= MIN_SPEED_UP)}
    report(f"An epoch of {stack} members, {arguments.threads} thread(s), median of {arguments.repeats}", stacks)
    members, epochs, processes = (2, 2, 1) if arguments.quick else (arguments.members, EPOCHS, arguments.processes)
    zoos = [time_zoo(members, epochs, processes=processes)]
    report("A whole zoo", zoos)
    save(arguments, {"stacks": stacks, "zoos": zoos})


if __name__ == "__main__":
    main()

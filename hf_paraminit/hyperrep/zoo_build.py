"""Building a zoo: a plan of members, trained in stacks over processes, resumed where it stopped.

A stack of members is one file, written when its members are finished, and carries their records in its header: a
finished stack is a file that is there. Whatever ends the build, nothing that is finished is lost or computed twice.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from tqdm.auto import tqdm

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.hyperrep.align import permutation_spec
from hf_paraminit.hyperrep.tensors import TensorSpec, describe_module
from hf_paraminit.hyperrep.zoo import (
    CONFIG_FILE,
    FORMAT_VERSION,
    INDEX_FILE,
    LAYOUT_FILE,
    MODELS_FILE,
    SPLITS,
    ZOO_TYPE,
    Split,
    Zoo,
    ZooRow,
    listed,
    read_json,
    write_rows,
)
from hf_paraminit.hyperrep.zoo_card import write_readme
from hf_paraminit.hyperrep.zoo_training import (
    Constructor,
    MemberConfig,
    Snapshot,
    ZooData,
    build_member,
    stacking_gain,
    train_members,
    why_not_stacked,
)
from hf_paraminit.io.atomic import atomic_write, remove_unfinished
from hf_paraminit.io.exclusive import exclusive
from hf_paraminit.io.safetensors_file import write_tensors
from hf_paraminit.training.processes import in_workers, is_launched, is_main_process, launched_state, wait_for_everyone

SPLIT_SEED = 42  # of the order in which models are dealt out to the splits, as in the published zoos
SPLIT_SHARES = (0.7, 0.15, 0.15)
STACK_SIZE = 25  # members that are trained at once; more are not faster on a CPU, and a killed build loses one stack
MIN_GAIN = 1.1  # of training together, below which members are trained one after another
ROWS_KEY = "rows"  # entry of a file's header


@dataclass(frozen=True, kw_only=True)
class ZooPlan:
    """What a zoo consists of.

    Attributes:
        members: How each model is trained; its position is its name.
        save_epochs: Epochs whose checkpoints are kept, ascending; 0 is before training.
        stack_size: Most members that are trained at once, if the architecture allows it and gains by it.
        always_stacked: Train them at once even where a measurement says that it is slower; then the same plan gives
            the same roundings on every machine.

    Raises:
        TrainingConfigError: No members, members that occur twice, or epochs that no member reaches.
    """

    members: Sequence[MemberConfig]
    save_epochs: Sequence[int]
    stack_size: int = STACK_SIZE
    always_stacked: bool = False

    def __post_init__(self) -> None:
        faults = []
        if not self.members:
            faults.append("it has no members")
        if len({json.dumps(member.to_dict(), sort_keys=True) for member in self.members}) < len(self.members):
            faults.append("some members are equal in all settings, the seed included")
        if len({member.epochs for member in self.members}) > 1:
            faults.append("its members train for different numbers of epochs")
        last = min((member.epochs for member in self.members), default=0)
        ascending = sorted(set(self.save_epochs))
        if not ascending or list(self.save_epochs) != ascending or ascending[0] < 0 or ascending[-1] > last:
            faults.append(f"save_epochs must ascend within 0..{last}, got {list(self.save_epochs)}")
        if self.stack_size < 1:
            faults.append(f"stack_size must be at least 1, got {self.stack_size}")
        if faults:
            raise TrainingConfigError(f"Cannot build a zoo: {'; '.join(faults)}.")

    @classmethod
    def grid(
        cls,
        seeds: Sequence[int],
        options: Mapping[str, Sequence[Any]] | None = None,
        *,
        save_epochs: Sequence[int] | None = None,
        stack_size: int = STACK_SIZE,
        always_stacked: bool = False,
        **settings: Any,
    ) -> ZooPlan:
        """Every combination of options for every seed.

        Args:
            seeds: Seeds of the members.
            options: Setting of `MemberConfig`, or argument of the network -> values.
            save_epochs: Epochs to keep; None for all but 0.
            stack_size: Most members that are trained at once.
            always_stacked: Without measuring whether it is faster.
            **settings: Settings that all members share.
        """
        options = options or {}
        if broken := [name for name, values in options.items() if not isinstance(values, list | tuple) or not values]:
            raise TrainingConfigError(f"Cannot build a zoo: {', '.join(broken)} of its grid need a list of values.")
        combinations = [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]
        members = [
            MemberConfig.from_dict(_sorted_settings({**settings, **combination, "seed": seed}))
            for combination in combinations
            for seed in seeds
        ]
        epochs = members[0].epochs if members else 0
        return cls(
            members=members,
            save_epochs=save_epochs or range(1, epochs + 1),
            stack_size=stack_size,
            always_stacked=always_stacked,
        )

    @property
    def model_ids(self) -> list[str]:
        """Names of the members."""
        return [f"model-{number:05d}" for number in range(len(self.members))]

    def stacks(self, size: int) -> list[list[int]]:
        """Numbers of the members that are trained together, at most `size`."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for number, member in enumerate(self.members):
            groups.setdefault(member.stack_key, []).append(number)
        return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A stack to be trained, as a worker process gets it."""

    folder: Path
    constructor: Constructor
    data: ZooData
    members: list[MemberConfig]
    model_ids: list[str]
    splits: list[Split]
    save_epochs: list[int]
    is_stacked: bool
    shards: dict[int, str]  # epoch -> file; the same for all epochs, or one for each
    device: str = "cpu"
    threads: int | None = field(default=None)

    @property
    def files(self) -> list[str]:
        return list(dict.fromkeys(self.shards.values()))


def build_zoo(
    folder: str | Path,
    constructor: Constructor,
    data: ZooData,
    plan: ZooPlan,
    *,
    architecture: str,
    processes: int = 1,
    device: str = "cpu",
    card: Mapping[str, Any] | None = None,
) -> Zoo:
    """Train a zoo, or finish one that was interrupted.

    Under `torchrun` or `accelerate launch` the stacks are shared among the launcher's processes.

    Args:
        folder: Where it lies; the same plan goes on where an earlier run stopped.
        constructor: Builds a network; called with `model_kwargs` of the member. For several processes it must be
            importable or known to joblib.
        data: What to train and evaluate on.
        plan: Members and epochs.
        architecture: What the zoo's card calls the network.
        processes: Worker processes where no launcher gave any.
        device: Where to train.
        card: Further entries of `zoo_config.json`, such as the command.

    Raises:
        TrainingConfigError: The folder holds a zoo of another plan or other data, members of different tensors, or data
            that the network does not take.
        OutputError: The folder cannot be written, or another build is writing there.
    """
    folder = Path(folder)
    _check_data(data, plan)
    model = build_member(constructor, plan.members[0])
    _check_network(model, data, architecture)
    tensors = describe_module(model)
    _check_members(constructor, plan, tensors)
    with _locked(folder):
        if is_main_process():
            remove_unfinished(folder)  # the others have not begun
            identity = _identity(architecture, tensors, data, plan)
            if not _is_begun(folder, identity):
                record = {"architecture": architecture, "data": data.name, **_traits(model, data, plan, device)}
                _begin(folder, tensors, plan, {**(card or {}), **record, "plan_digests": identity})
        wait_for_everyone()
        why_single = read_json(folder / CONFIG_FILE)["not_stacked_because"]
        jobs = _jobs(folder, constructor, data, plan, is_stacked=why_single is None, device=device)
        _compute(folder, jobs, tensors, processes)
        wait_for_everyone()
        zoo = Zoo.open(folder)
        if is_main_process():
            write_readme(zoo)
    return zoo


def deal_splits(model_ids: Sequence[str]) -> dict[str, Split]:
    """Deal models out to the splits, 70 : 15 : 15, in an order that depends on their number alone."""
    shuffled = list(model_ids)
    random.Random(SPLIT_SEED).shuffle(shuffled)
    first, second = (round(len(shuffled) * share) for share in (SPLIT_SHARES[0], sum(SPLIT_SHARES[:2])))
    names = [SPLITS[0]] * first + [SPLITS[1]] * (second - first) + [SPLITS[2]] * (len(shuffled) - second)
    return dict(zip(shuffled, names, strict=True))


def write_layout(folder: Path, tensors: Sequence[TensorSpec]) -> None:
    """Write `layout.json`."""
    layout = {"format_version": FORMAT_VERSION, "tensors": [spec.to_dict() for spec in tensors]}
    _write_json(folder / LAYOUT_FILE, layout)


def write_card(folder: Path, card: Mapping[str, Any], *, num_models: int, epochs: Sequence[int]) -> None:
    """Write `zoo_config.json`."""
    head = {"paraminit_type": ZOO_TYPE, "format_version": FORMAT_VERSION}
    _write_json(folder / CONFIG_FILE, {**head, **card, "num_models": num_models, "epochs": list(epochs)})


def write_index(folder: Path, rows: Sequence[ZooRow], tensors: Sequence[TensorSpec]) -> None:
    """Write `models.jsonl` and the index of the files."""
    with atomic_write(folder / MODELS_FILE) as path:
        write_rows(path, rows)
    shards = list(dict.fromkeys(row.shard for row in rows))
    ranges: dict[str, list[int]] = {shard: [] for shard in shards}
    for row in rows:
        ranges[row.shard].append(row.row or 0)
    index = {
        "metadata": {"total_size": sum((folder / shard).stat().st_size for shard in shards)},
        "row_map": {shard: [min(found), max(found)] for shard, found in ranges.items()},
        "weight_map": {spec.name: shards for spec in tensors},
    }
    _write_json(folder / INDEX_FILE, index)


# ---------------------------------------------------------------------- planning


def _sorted_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that a member does not know are arguments of the network."""
    known = set(MemberConfig.__dataclass_fields__)
    network = {name: value for name, value in settings.items() if name not in known}
    member = {name: value for name, value in settings.items() if name in known}
    return member if not network else {**member, "model_kwargs": {**member.get("model_kwargs", {}), **network}}


def _traits(model: nn.Module, data: ZooData, plan: ZooPlan, device: str) -> dict[str, Any]:
    """What the zoo's card says of the architecture: how it is trained, and which hidden units may be permuted."""
    spec = permutation_spec(model, data.train[0][:2])
    replica, images = copy.deepcopy(model).to(device), data.train[0][: plan.members[0].batch_size].to(device)
    if min(plan.stack_size, len(plan.members)) == 1:
        reason: str | None = "one member at a time was asked for"
    else:
        reason = why_not_stacked(replica, images[:2])
        is_measured = reason is None and not plan.always_stacked
        if is_measured and (gain := stacking_gain(replica, images)) < MIN_GAIN:
            reason = f"members together take a step only {gain:.2f} times as fast"
    return {"permutations": None if spec is None else spec.to_dict(), "not_stacked_because": reason}


def _jobs(
    folder: Path, constructor: Constructor, data: ZooData, plan: ZooPlan, *, is_stacked: bool, device: str
) -> list[_Job]:
    splits = deal_splits(plan.model_ids)
    stacks = plan.stacks(plan.stack_size if is_stacked else 1)
    jobs = []
    for number, stack in enumerate(stacks, start=1):
        name = f"data/zoo-{number:05d}-of-{len(stacks):05d}.safetensors"
        ids = [plan.model_ids[member] for member in stack]
        shards = {
            epoch: name if is_stacked else f"data/{ids[0]}/epoch-{epoch:04d}.safetensors" for epoch in plan.save_epochs
        }
        jobs.append(
            _Job(
                folder=folder,
                constructor=constructor,
                data=data,
                members=[plan.members[member] for member in stack],
                model_ids=ids,
                splits=[splits[name] for name in ids],
                save_epochs=list(plan.save_epochs),
                is_stacked=is_stacked,
                shards=shards,
                device=device,
            )
        )
    return jobs


def _check_data(data: ZooData, plan: ZooPlan) -> None:
    faults = []
    for name, (images, labels) in data.blocks.items():
        if images.ndim != 4 or not images.is_floating_point() or labels.shape != images.shape[:1] or not len(labels):
            faults.append(f"the {name} block has images {tuple(images.shape)} and labels {tuple(labels.shape)}")
        elif not bool(images.isfinite().all()):
            faults.append(f"the {name} block has NaN or infinite pixels")
    largest = max(member.batch_size for member in plan.members)
    if not faults and len(data.train[0]) < largest:
        faults.append(f"the train block has {len(data.train[0])} images, fewer than a batch of {largest}")
    if faults:
        raise TrainingConfigError(f"Cannot train a zoo on {data.name}: {'; '.join(faults)}.")


@torch.no_grad()
def _check_network(model: nn.Module, data: ZooData, architecture: str) -> None:
    images = data.train[0][:2]
    attempt = f"Cannot train a zoo of {architecture} on {data.name}"
    try:
        scores = model.eval()(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise TrainingConfigError(
            f"{attempt}: it does not take images {tuple(images.shape[1:])} ({str(error)[:200]}). Choose the image size "
            "and channels that it was built for."
        ) from error
    finally:
        model.train()
    classes = int(max(int(labels.max()) for _, labels in data.blocks.values())) + 1
    if not isinstance(scores, torch.Tensor) or scores.ndim != 2 or scores.shape[1] < classes:
        found = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise TrainingConfigError(f"{attempt}: its output is {found}, expected scores (2, {classes}).")


def _check_members(constructor: Constructor, plan: ZooPlan, tensors: tuple[TensorSpec, ...]) -> None:
    """Settings of the network may not change its tensors: a zoo has one architecture."""
    expected = {spec.name: spec.shape for spec in tensors}
    variants = {member.stack_key[-1]: member for member in plan.members}
    faults = []
    for member in variants.values():
        found = {spec.name: spec.shape for spec in describe_module(build_member(constructor, member))}
        names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
        if names:
            name = names[0]
            faults.append(f"{dict(member.model_kwargs)} gives {name} {found.get(name)}, others {expected.get(name)}")
    if faults:
        raise TrainingConfigError(f"A zoo has one architecture: {listed(faults)}. Build a zoo of each.")


# ---------------------------------------------------------------------- running


def _identity(architecture: str, tensors: Sequence[TensorSpec], data: ZooData, plan: ZooPlan) -> dict[str, str]:
    """Digests of all that decides the content of a zoo."""
    parts = {
        "architecture": architecture,
        "data": _digest(data),
        "epochs": list(plan.save_epochs),
        "stack size": plan.stack_size,
        "members": [member.to_dict() for member in plan.members],
        "tensors": [spec.to_dict() for spec in tensors],
    }
    return {
        name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
        for name, value in parts.items()
    }


def _is_begun(folder: Path, identity: Mapping[str, str]) -> bool:
    """Whether an earlier run began this very zoo here.

    Raises:
        TrainingConfigError: It was another one.
    """
    if not (folder / CONFIG_FILE).exists():
        return False
    stored = read_json(folder / CONFIG_FILE).get("plan_digests", {})
    if differing := [name for name, value in identity.items() if stored.get(name) != value]:
        raise TrainingConfigError(
            f"{folder} holds a zoo with other {', '.join(differing)}. Repeat the command that began it to finish it, "
            "or choose another folder."
        )
    return True


def _begin(folder: Path, tensors: Sequence[TensorSpec], plan: ZooPlan, card: Mapping[str, Any]) -> None:
    """Write what is known before training; the card comes last, it says that the rest is there."""
    members = [member.to_dict() for member in plan.members]
    values = {name: {json.dumps(member[name]): member[name] for member in members} for name in members[0]}
    seeds = len(values.pop("seed"))
    settings = {name: list(found.values()) for name, found in values.items()}
    write_layout(folder, tensors)
    write_card(
        folder,
        {**card, "num_seeds": seeds, "settings": settings},
        num_models=len(plan.members),
        epochs=plan.save_epochs,
    )


def _compute(folder: Path, jobs: list[_Job], tensors: Sequence[TensorSpec], processes: int) -> None:
    """Train the stacks that are not finished; the records of all that are finished can be read at any time."""
    finished = {job.files[0]: rows for job in jobs if (rows := _finished_rows(job)) is not None}
    pending = [job for job in jobs if job.files[0] not in finished]
    total, left = (sum(len(job.members) for job in some) for some in (jobs, pending))
    with tqdm(total=total, initial=total - left, desc="models", unit="model", disable=not is_main_process()) as bar:
        for rows in _results(pending, processes):
            finished[rows[0].shard] = rows
            bar.update(len({row.model_id for row in rows}))
            if not is_launched():
                _write_finished(folder, jobs, finished, tensors)
    wait_for_everyone()
    if is_main_process():
        others = {job.files[0]: rows for job in jobs if (rows := _finished_rows(job)) is not None}
        _write_finished(folder, jobs, others, tensors)


def _write_finished(
    folder: Path, jobs: list[_Job], finished: Mapping[str, list[ZooRow]], tensors: Sequence[TensorSpec]
) -> None:
    rows = (row for job in jobs for row in finished.get(job.files[0], ()))
    write_index(folder, sorted(rows, key=lambda row: (row.model_id, row.epoch)), tensors)


def _results(jobs: list[_Job], processes: int) -> Iterator[list[ZooRow]]:
    """Records of each stack as it is finished."""
    if is_launched():
        with launched_state().split_between_processes(jobs) as mine:
            yield from map(_run, mine)
    elif processes == 1 or len(jobs) < 2:
        yield from map(_run, jobs)
    else:
        processes = min(processes, len(jobs))
        threads = max(1, torch.get_num_threads() // processes)
        yield from in_workers(functools.partial(_run, threads=threads), jobs, processes)


def _run(job: _Job, threads: int | None = None) -> list[ZooRow]:
    """Train a stack and write its files; the last thing written makes it count as finished."""
    if threads is not None:
        torch.set_num_threads(threads)
    snapshots = train_members(
        job.constructor, job.members, job.data, job.save_epochs, device=job.device, stacked=job.is_stacked
    )
    if job.is_stacked:
        return _write_stack(job, list(snapshots))
    rows: list[ZooRow] = []
    for snapshot in snapshots:
        tensors = {name: tensor[0] for name, tensor in snapshot.tensors.items()}
        rows += (found := _rows(job, [snapshot]))
        _write_shard(job, found[0].shard, tensors, found)
    return rows


def _write_stack(job: _Job, snapshots: list[Snapshot]) -> list[ZooRow]:
    """Write the checkpoints of a stack to one file, ordered by member and then epoch."""
    rows = _rows(job, snapshots)
    names = snapshots[0].tensors
    stacked = {name: torch.stack([item.tensors[name] for item in snapshots], 1).flatten(0, 1) for name in names}
    _write_shard(job, rows[0].shard, stacked, rows)
    return rows


def _write_shard(job: _Job, shard: str, tensors: Mapping[str, torch.Tensor], rows: list[ZooRow]) -> None:
    unshared = {name: tensor.clone() for name, tensor in tensors.items()}  # tied tensors are stored for each name
    write_tensors(job.folder / shard, unshared, {ROWS_KEY: json.dumps([row.to_dict() for row in rows])})


def _rows(job: _Job, snapshots: Sequence[Snapshot]) -> list[ZooRow]:
    rows: list[ZooRow] = []
    for member, (model_id, config, split) in enumerate(zip(job.model_ids, job.members, job.splits, strict=True)):
        for snapshot in snapshots:
            weights = [tensor[member] for tensor in snapshot.tensors.values() if tensor.is_floating_point()]
            measured = {
                name: round(value, 6) if math.isfinite(value := float(metric[member])) else None
                for name, metric in snapshot.metrics.items()
            }
            rows.append(
                ZooRow(
                    model_id=model_id,
                    epoch=snapshot.epoch,
                    split=split,
                    seed=config.seed,
                    config=config.to_dict(),
                    is_finite=all(bool(tensor.isfinite().all()) for tensor in weights),
                    shard=job.shards[snapshot.epoch],
                    row=len(rows) if job.is_stacked else None,
                    **measured,
                )
            )
    return rows


def _finished_rows(job: _Job) -> list[ZooRow] | None:
    """Records of a stack, None if it is not finished."""
    rows: list[ZooRow] = []
    for name in job.files:
        try:
            with safe_open(job.folder / name, framework="numpy") as file:
                rows += [ZooRow.from_dict(values) for values in json.loads(file.metadata()[ROWS_KEY])]
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            return None
    return rows


def _digest(data: ZooData) -> str:
    digest = hashlib.sha256()
    for images, labels in data.blocks.values():
        digest.update(images.contiguous().numpy().tobytes())
        digest.update(labels.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this build; the system lets go of it when the process ends, however it ends."""
    if not is_main_process():
        yield
        return
    with exclusive(folder, folder / ".lock"):
        yield

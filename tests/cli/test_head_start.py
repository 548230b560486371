import torch

from hf_paraminit.cli.evaluate.head_start import ALL_NETS, HeadStart, HeadStartExperiment
from hf_paraminit.evaluation.experiment import Initialization, Record
from hf_paraminit.evaluation.nets import Net
from hf_paraminit.evaluation.tasks import Task

NETS = {name: Net(name=name, architecture="test_vit") for name in ("small", "large")}
IMAGES = (torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))
TASK = Task(name="nothing to see", train=IMAGES, validation=IMAGES, test=IMAGES, num_classes=2)
STARTS = {label: Initialization(label=label) for label in ("nothing", "learngene", "control")}


def measured(found: dict[int, list[Record]]) -> HeadStart:
    experiment = HeadStartExperiment(
        task=TASK,
        nets=NETS,
        starts=STARTS,
        learngene="learngene",
        scratch=("nothing",),
        seeds=2,
        batch_size=64,
    )
    return HeadStart(rows=experiment._rows(found))


def records(net: str, start: str, accuracies: tuple[float, ...], factor: float = 1.0) -> list[Record]:
    return [
        {"net": net, "init": start, "seed": seed, "factor": factor, "status": "done", "auc": accuracy}
        for seed, accuracy in enumerate(accuracies)
    ]


def test_leads_are_paired_by_seed_and_averaged_over_nets() -> None:
    early = [
        *records("small", "learngene", (50.0, 60.0), factor=3.0),
        *records("small", "control", (40.0, 52.0)),
        *records("large", "learngene", (70.0, 70.0)),
        *records("large", "control", (71.0, 75.0)),
    ]
    late = [*records("small", "nothing", (80.0, 80.0)), *records("large", "nothing", (90.0, 94.0))]
    rows = {(row.net, row.start, row.epochs): row for row in measured({10: late, 1: early}).rows}
    assert rows["small", "learngene", 1].lead is None
    assert rows["small", "learngene", 1].factor == 3.0
    assert rows["small", "control", 1].lead.mean == 9.0
    assert rows["large", "nothing", 10].lead.mean == -22.0
    mean = rows[ALL_NETS, "control", 1]
    assert mean.accuracies == {0: 55.5, 1: 63.5}
    assert mean.lead.mean == 3.0
    assert mean.lead.low <= 3.0 <= mean.lead.high
    assert rows[ALL_NETS, "nothing", 10].lead.mean == -23.5
    assert ("small", "nothing", 1) not in rows


def test_a_mean_over_nets_needs_all_of_them() -> None:
    early = [*records("small", "learngene", (50.0, 60.0)), *records("small", "control", (40.0, 52.0))]
    early += [*records("large", "learngene", (70.0,)), *records("large", "control", (71.0, 75.0))]
    rows = {(row.net, row.start): row for row in measured({10: [], 1: early}).rows}
    assert (ALL_NETS, "learngene") not in rows, "a seed is missing"
    assert rows[ALL_NETS, "control"].lead is None, "it cannot be compared over all nets"
    assert rows["large", "control"].lead.count == 1

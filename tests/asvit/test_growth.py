"""Growth: recorded traces, limits, and going on after an interruption."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import asvit_goldens
import pytest

import hf_paraminit.asvit.candidates as candidates_module
from hf_paraminit.asvit.architecture import Architecture
from hf_paraminit.asvit.candidates import CandidateScore, ScoreSettings, score_once
from hf_paraminit.asvit.errors import ArchitectureError, ScoreError
from hf_paraminit.asvit.grow import NO_CANDIDATE, GrowthConfig, grow, growth_candidates, growth_steps

TINY = ScoreSettings(rewards=("exp",), repeats=1, img_size=64, num_points=3)
TOPOLOGY = "4,2,2|2,1,2|2,1,2|2,1,2|16"


def stub(kind: str, names: Sequence[str]) -> Callable[[Sequence[Architecture]], list[CandidateScore]]:
    """The stubbed metrics of golden/asvit/README.md."""

    def values(arch: Architecture) -> dict[str, float]:
        (a, b, c, e), d = arch.depths, arch.width
        if kind == "A":
            found = {"ntk": 100 + (7 * a + 5 * b + 3 * c + 11 * e + d) % 13}
            found["exp"] = 1e-4 * (1 + (2 * a + 3 * b + 5 * c + e + 3 * d) % 17)
        elif kind == "B":
            found = {"ntk": 10 * (a + b + c + e) + d, "exp": d * (a + 2 * b + 3 * c + 4 * e)}
        else:
            q = (a + 2 * b + 3 * c + 4 * e) % 4
            found = {"ntk": q + 1, "exp": 4 - q + d % 2}
        return {name: float(found[name]) for name in names}

    return lambda archs: [CandidateScore(arch, values(arch)) for arch in archs]


@pytest.mark.parametrize("index", range(len(asvit_goldens.read("grow_traces"))))
def test_recorded_growth(index: int) -> None:
    record = asvit_goldens.read("grow_traces")[index]
    config = GrowthConfig(
        arch=record["seed_arch"],
        scores=ScoreSettings(rewards=tuple(record["reward_types"]), img_size=record["img_size"]),
        width=record["hidden0"],
        ratios=tuple(record["ratios"]),
        stop_params=record["param_limits"][0] * 1e6,
        max_params=record["param_limits"][1] * 1e6,
        tie_break="upstream",
    )
    steps = list(growth_steps(config, stub(record["stub"], record["reward_types"])))
    start = [[1, 1, 1, 1], record["hidden0"]]
    for found, expected in zip(steps, record["steps"], strict=True):
        assert expected["start"] == start
        assert found["num_candidates"] == len(expected["candidates"])
        scored = [[list(c["depths"]), c["width"]] for c in found["candidates"]]
        assert scored == [[c["depth"], c["dim"]] for c in expected["scored"]]
        for ours, theirs in zip(found["candidates"], expected["scored"], strict=True):
            assert ours["scores"] == pytest.approx({name: theirs[name] for name in record["reward_types"]})
        assert (found["architecture"] is None) == expected["stop"]
        if not expected["stop"]:
            assert found["architecture"] == expected["arch"]
            assert found["params"] == round(1e6 * expected["mparams"])
            assert found["macs"] == round(1e9 * expected["gflops"])
            start = expected["choice"]
            assert [list(found["depths"]), found["width"]] == start


@pytest.mark.parametrize("index", range(len(asvit_goldens.read("grow_candidates"))))
def test_recorded_candidates(index: int) -> None:
    record = asvit_goldens.read("grow_candidates")[index]
    found = growth_candidates(record["depth"], record["dim"], record["ratios"], record["delta_depth"])
    assert [[list(depths), width] for depths, width in found] == record["candidates"]


def test_candidates_have_the_recorded_size() -> None:
    (record, *_) = asvit_goldens.read("grow_traces")
    for candidate in record["steps"][0]["candidates"]:
        arch = Architecture.parse(record["seed_arch"]).scaled(depths=candidate["depth"], width=candidate["dim4"])
        assert arch.num_params() == round(1e6 * candidate["mparams"])
        assert arch.macs(record["img_size"]) == round(1e9 * candidate["gflops"])


def test_limits_of_cost_and_size() -> None:
    config = GrowthConfig(arch=TOPOLOGY, scores=TINY, stop_params=1e9, max_params=3e6, max_macs=2.2e7)
    result = grow(config)
    assert result.stopped == NO_CANDIDATE
    assert result.steps[-1]["architecture"] is None
    assert all(arch.num_params() <= 3e6 and arch.macs(64) <= 2.2e7 for arch in result.path)
    assert [sum(arch.depths) for arch in result.path] == list(range(5, 5 + len(result.path)))
    (last,) = (arch for arch in result.path[-1:])
    bigger = growth_candidates(last.depths, last.width // 4)
    too_big = [config.real(*c).num_params() > 3e6 or config.real(*c).macs(64) > 2.2e7 for c in bigger]
    assert all(too_big)


@pytest.mark.parametrize(
    ("limits", "message"), [({"max_params": 1e6}, "1 M parameters"), ({"max_macs": 1e6}, "0.001 GMACs")]
)
def test_limits_that_nothing_satisfies(limits: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match=f"Growth cannot start: .*{message}"):
        grow(GrowthConfig(arch=TOPOLOGY, scores=TINY, **limits), output=tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_interrupted_growth_goes_on(monkeypatch, tmp_path: Path) -> None:
    config = GrowthConfig(arch=TOPOLOGY, scores=TINY, stop_params=2.2e6)
    whole = grow(config)
    assert whole.path[-1].num_params() >= 2.2e6 > whole.path[-2].num_params()
    assert whole.stopped == "2.2 M parameters reached"
    calls = []

    def counting(settings, arch, repeat, **kwargs):
        calls.append(arch.canonical)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return score_once(settings, arch, repeat, **kwargs)

    monkeypatch.setattr(candidates_module, "score_once", counting)
    with pytest.raises(KeyboardInterrupt):
        grow(config, output=tmp_path)
    resumed = grow(config, output=tmp_path)
    assert json.dumps(resumed.steps) == json.dumps(whole.steps)
    finished = calls[:14] + calls[15:]
    assert len(finished) == len(set(finished))
    log = (tmp_path / "steps" / "runs.jsonl").read_text().splitlines()
    assert [json.loads(line)["architecture"] for line in log] == [arch.canonical for arch in whole.path]


def test_failed_candidates_are_passed_over() -> None:
    def score(archs):
        return [
            CandidateScore(arch, failure="no") if index != 2 else CandidateScore(arch, {"exp": 1.0})
            for index, arch in enumerate(archs)
        ]

    config = GrowthConfig(arch=TOPOLOGY, scores=TINY, stop_params=1)
    (step,) = growth_steps(config, score)
    assert [step["depths"], step["width"]] == [(2, 1, 1, 1), 10]
    assert step["candidates"][0]["failure"] == "no"
    with pytest.raises(ScoreError, match="All 12 candidates of growth step 0 failed: no"):
        list(growth_steps(config, lambda archs: [CandidateScore(arch, failure="no") for arch in archs]))


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"arch": "8,2"}, ArchitectureError),
        ({"arch": "8,2,3|4,1,2|4,1,4|4,1,6|128"}, ArchitectureError),  # 16 heads at width 8
        ({"scale": 0}, ScoreError),
        ({"ratios": ()}, ScoreError),
        ({"new_blocks": (5,)}, ScoreError),
        ({"stop_params": 0}, ScoreError),
        ({"tie_break": "first"}, ScoreError),
    ],
)
def test_settings_that_cannot_work(settings: dict, error: type[Exception]) -> None:
    with pytest.raises(error):
        GrowthConfig(**settings)

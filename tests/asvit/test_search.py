"""Policy, reward and search: recorded traces, failures, and going on after an interruption."""

import json
import os
import subprocess
import sys
from pathlib import Path

import asvit_goldens
import pytest
import torch

import hf_paraminit.asvit.candidates as candidates_module
from hf_paraminit.asvit.architecture import Architecture
from hf_paraminit.asvit.candidates import CandidateScore, CandidateScorer, ScoreSettings, score_once
from hf_paraminit.asvit.errors import ArchitectureError, ScoreError
from hf_paraminit.asvit.policy import Policy
from hf_paraminit.asvit.ranking import best_candidate, rank_sums
from hf_paraminit.asvit.reward import ChangeReward
from hf_paraminit.asvit.search import SearchConfig, search, search_steps
from hf_paraminit.asvit.space import SearchSpace
from hf_paraminit.errors import OutputError

TINY = ScoreSettings(rewards=("exp",), repeats=2, img_size=64, num_points=3)
SMALL_SPACE = SearchSpace(((4,), (2, 3), (2,), (2,), (2,), (1,), (1,), (2, 3), (2,), (2,), (2,), (16,)))


@pytest.mark.parametrize("index", range(len(asvit_goldens.read("reward_buffers"))))
def test_recorded_buffers(index: int) -> None:
    record = asvit_goldens.read("reward_buffers")[index]
    rewards = ChangeReward(record["types"], buffer_size=record["buffer_size"])
    for sample, expected in zip(record["inputs"], record["outputs"], strict=True):
        assert rewards.update(sample, is_failed=sample["bad"]) == pytest.approx(expected["reward"], abs=1e-12)
        for name in record["types"]:
            assert rewards.buffers[name] == pytest.approx(expected["buffers"][name])
            assert rewards.changes[name] == pytest.approx(expected["change"][name], abs=1e-12)


@pytest.mark.parametrize("index", range(len(asvit_goldens.read("policy_traces")["runs"])))
def test_recorded_policy(index: int) -> None:
    """The sampler too: the same seed draws the recorded logits and choices."""
    record = asvit_goldens.read("policy_traces")["runs"][index]
    space = SearchSpace()
    policy = Policy(space, seed=record["seed"], learning_rate=record["lr"], baseline_momentum=record["ema_momentum"])
    rewards = ChangeReward(
        record["reward_types"], buffer_size=record["buffer_size"], constraint_weight=record["constraint_weight"]
    )
    for logits, expected in zip(policy.logits, record["init_logits"], strict=True):
        torch.testing.assert_close(logits.detach(), torch.tensor(expected), rtol=0, atol=1e-9)
    for step in record["trace"]:
        assert policy.sample() == step["actions"]
        assert space.decode(step["actions"]).topology == step["arch"]
        reward = rewards.update(step, constraint=step["constraint"] or 0.0)
        assert reward == pytest.approx(step["reward"], abs=1e-12)
        done = policy.update(step["actions"], reward)
        assert done.baseline == pytest.approx(step["baseline"], abs=1e-12)
        assert [done.log_prob, done.entropy] == pytest.approx([step["log_prob"], step["entropy"]], abs=1e-5)
        assert done.loss == pytest.approx(step["loss"], abs=1e-5)
        assert space.decode(policy.best()).topology == step["derived"]
    for logits, expected in zip(policy.logits, record["final_logits"], strict=True):
        torch.testing.assert_close(logits.detach(), torch.tensor(expected), rtol=0, atol=1e-5)
    seen = {name: [step[name] for step in record["trace"]] for name in record["reward_types"]}
    sums = rank_sums(seen)
    assert sums.index(min(sums)) == record["best_by_rank_index"]


def test_a_constraint_pulls_and_a_relative_eps_scales() -> None:
    rewards = ChangeReward(["exp"], constraint_weight=0.5)
    rewards.update({"exp": 1.0}, constraint=10)
    assert rewards.update({"exp": 1.0}, constraint=20) == pytest.approx(-0.5, abs=1e-6)
    for scale in (1.0, 1e-6):  # the published floor would shrink the changes of small values
        relative = ChangeReward(["exp"], relative_eps=1e-3)
        relative.update({"exp": scale})
        assert relative.update({"exp": 2 * scale}) == pytest.approx(1 / (1 + 2e-3))


def test_a_failed_sample_counts_as_the_worst_of_every_score() -> None:
    rewards = ChangeReward(["ntk", "exp"])
    for ntk, exp in ((10, 3), (20, 1)):
        rewards.update({"ntk": ntk, "exp": exp})
    rewards.update({}, is_failed=True)
    assert (rewards.buffers["ntk"][-1], rewards.buffers["exp"][-1]) == (20, 1)
    rewards.update({"ntk": 30, "exp": 2})
    assert (rewards.buffers["ntk"][2], rewards.buffers["exp"][2]) == (30, 1)
    first = ChangeReward(["exp"])
    assert first.update({}, is_failed=True) == 0


def test_a_search_prefers_what_scores_better() -> None:
    def score(archs):
        return [CandidateScore(arch, {"exp": float(sum(arch.patch_sizes))}) for arch in archs]

    config = SearchConfig(scores=TINY, steps=150)
    last = list(search_steps(config, SearchSpace(), score))[-1]
    first_entropy, found = 15.3, Architecture.parse(last["derived"])
    assert last["entropy"] < first_entropy - 1
    assert sum(found.patch_sizes) >= 15


def test_failed_candidates_are_recorded_and_the_search_goes_on(monkeypatch, tmp_path: Path) -> None:
    def sometimes(settings, arch, repeat, **kwargs):
        if arch.ffn_ratios[0] == 2:
            return {"exp": float("nan")}
        return score_once(settings, arch, repeat, **kwargs)

    monkeypatch.setattr(candidates_module, "score_once", sometimes)
    result = search(SearchConfig(scores=TINY, steps=8, width=8, seed=0), space=SMALL_SPACE, output=tmp_path)
    failed = [step for step in result.steps if step["failure"] is not None]
    assert 0 < len(failed) == result.num_failed < 8
    assert all(step["failure"] == "exp is not a finite number" and step["scores"] == {} for step in failed)
    assert result.best_sampled is not None
    assert result.best_sampled.ffn_ratios[0] == 3
    log = [json.loads(line) for line in (tmp_path / "steps" / "runs.jsonl").read_text().splitlines()]
    assert log == json.loads(json.dumps(result.steps))


def test_an_interrupted_search_ends_as_if_it_had_not_been(monkeypatch, tmp_path: Path) -> None:
    config = SearchConfig(scores=TINY, steps=6, width=8)
    whole = search(config, space=SMALL_SPACE)
    calls = []

    def counting(settings, arch, repeat, **kwargs):
        calls.append((arch.canonical, repeat))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score_once(settings, arch, repeat, **kwargs)

    monkeypatch.setattr(candidates_module, "score_once", counting)
    with pytest.raises(KeyboardInterrupt):
        search(config, space=SMALL_SPACE, output=tmp_path)
    with (tmp_path / "steps" / "runs.jsonl").open("a") as stream:
        stream.write('{"key": "half a li')
    resumed = search(config, space=SMALL_SPACE, output=tmp_path)
    assert json.dumps(resumed.steps) == json.dumps(whole.steps)
    finished = [cell for index, cell in enumerate(calls) if index != 3]
    assert len(finished) == len(set(finished)), "a finished score is not computed again"
    calls.clear()
    longer = search(SearchConfig(scores=TINY, steps=7, width=8), space=SMALL_SPACE, output=tmp_path)
    assert json.dumps(longer.steps[:6]) == json.dumps(whole.steps)
    assert len(calls) <= 2
    with pytest.raises(ScoreError, match=r"other settings.*width 8 there, 10 here"):
        search(SearchConfig(scores=TINY, steps=6, width=10), space=SMALL_SPACE, output=tmp_path)


def test_length_distortion_alone_looks_at_no_image(monkeypatch) -> None:
    monkeypatch.setattr(candidates_module, "SyntheticImages", None)
    (score,) = CandidateScorer(TINY)([Architecture.parse("4,2,2|2,1,2|2,1,2|2,1,2|16,8")])
    assert score.values["exp"] > 0


def test_kernels_look_at_given_or_generated_images() -> None:
    settings = ScoreSettings(rewards=("ntk",), repeats=1, img_size=64)
    arch = Architecture.parse("4,2,2|2,1,2|2,1,2|2,1,2|16,8")
    (generated,) = CandidateScorer(settings)([arch])
    (given,) = CandidateScorer(settings, images=torch.randn(3, 3, 64, 64))([arch])
    assert 1 < given.values["ntk"] != generated.values["ntk"] > 1
    with pytest.raises(ScoreError, match=r"needs \(N, 3, 64, 64\) images"):
        CandidateScorer(settings, images=torch.randn(3, 3, 32, 32))
    under_prediction = ScoreSettings(rewards=("exp",), repeats=1, img_size=64, reinit="ghn3")
    assert CandidateScorer(under_prediction)([arch])[0].values["exp"] > 0


def test_a_candidate_without_a_network_is_a_failure_not_an_end() -> None:
    odd = Architecture.parse("4,3,2|2,1,2|2,1,2|2,1,2|16,8")  # 16 tokens in windows of 5
    (score,) = CandidateScorer(TINY)([odd])
    assert score.values == {}
    assert score.failure is not None
    assert "no whole windows" in score.failure


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"baseline_momentum": 1.0}, "baseline_momentum"),
        ({"constraint": "size"}, "constraint"),
        ({"relative_eps": 0.0}, "relative_eps"),
    ],
)
def test_settings_that_cannot_work(settings: dict, message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        SearchConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"rewards": ()},
        {"rewards": ("exp", "exp")},
        {"rewards": ("speed",)},
        {"repeats": 0},
        {"radius": -1.0},
        {"init_std": float("nan")},
    ],
)
def test_scores_that_cannot_work(settings: dict) -> None:
    with pytest.raises(ScoreError):
        ScoreSettings(**settings)


def test_sizes_that_no_choice_can_have_are_refused_before_the_first_score(tmp_path: Path) -> None:
    for img_size, width, message in (
        (100, 32, "multiple of 32"),
        (64, 4, "0 channels"),
    ):
        config = SearchConfig(scores=ScoreSettings(img_size=img_size), width=width)
        with pytest.raises(ArchitectureError, match=message):
            search(config, output=tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError):
        search(SearchConfig(scores=TINY, steps=1, width=8), space=SMALL_SPACE, output=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_ties_as_published_and_as_meant() -> None:
    tied = {"exp": [4.0, 1.0, 3.0, 2.0], "ntk": [4.0, 1.0, 3.0, 2.0]}
    assert rank_sums(tied) == [3, 3, 3, 3]
    assert best_candidate(tied, tie_break="upstream") == 1
    assert best_candidate(tied, tie_break="fixed") == 0
    with pytest.raises(ScoreError, match="tie_break"):
        best_candidate(tied, tie_break="none")


SCRIPT = """
import json, os, sys
from pathlib import Path
import torch.distributed as dist
from hf_paraminit.asvit.candidates import ScoreSettings
from hf_paraminit.asvit.search import SearchConfig, search
scores = ScoreSettings(rewards=("exp",), repeats=2, img_size=64, num_points=3)
result = search(SearchConfig(scores=scores, steps=3, width=8), output=Path(sys.argv[1]))
Path(sys.argv[1], f"rank{os.environ['RANK']}.json").write_text(json.dumps(result.steps))
dist.barrier()
os._exit(0)
"""


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [*command, str(script), str(tmp_path / "run")], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    expected = search(SearchConfig(scores=TINY, steps=3, width=8)).steps
    for rank in (0, 1):
        assert json.loads((tmp_path / "run" / f"rank{rank}.json").read_text()) == json.loads(json.dumps(expected))
    kept = (tmp_path / "run" / "candidates" / "runs.jsonl").read_text().splitlines()
    assert len(kept) == len({json.loads(line)["key"] for line in kept}) == 6

"""`paraminit push` to a local Hub: what is uploaded, what is refused, and what each failure says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hub_server import HubServer, closed_endpoint
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from hf_paraminit.cli.main import main
from hf_paraminit.ghn.model import GHN

TOKEN = {"HF_TOKEN": "hf_secret"}
RUN = """
import contextlib, io, json
from hf_paraminit.cli.main import main
answers = []
for words in {calls!r}:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["push", *words])
    answers.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(answers))
"""


class Answer(NamedTuple):
    code: int
    out: str
    err: str


def push(hub: HubServer, *calls: list[str], **environment: str) -> list[Answer]:
    """Several `paraminit push` after each other, in one process of their own."""
    done = hub.run(RUN.format(calls=calls), **environment)
    assert done.returncode == 0, done.stderr
    return [Answer(*answer) for answer in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture
def folder(predictor_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(predictor_folder, tmp_path / "mine"))


def test_a_predictor_is_pushed_without_what_lies_beside_it(hub: HubServer, folder: Path) -> None:
    for stray in ("notes.txt", ".env", "optimizer.bin", "model.pt", "runs/log.txt"):
        (folder / stray).parent.mkdir(exist_ok=True)
        (folder / stray).write_text("not for others")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (answer,) = push(hub, [str(folder), "me/mine"], **TOKEN)
    assert answer.code == 0, answer.err
    repository = hub.repositories["me/mine"]
    commit = repository.refs["main"]
    name = f"hf-hub:me/mine@{commit}"
    assert answer.out.splitlines() == [name, f'Use with init="{name}"']
    stored = {path: content for path, content in repository.commits[commit].items() if path != ".gitattributes"}
    assert stored.keys() == {"config.json", "model.safetensors", "README.md"}
    assert stored["config.json"] == (folder / "config.json").read_bytes()
    assert stored["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert 'init="hf-hub:me/mine"' in stored["README.md"].decode()
    assert repository.messages == ["Upload with hf_paraminit: mine"]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    use = f"import timm, hf_paraminit\nprint(len(timm.create_model('resnet18', init='{name}')._hf_paraminit.predicted))"
    done = hub.run(use)
    assert done.stdout == "62\n", done.stderr


def test_private_branch_message_and_pull_request(hub: HubServer, folder: Path, tiny_ghn: GHN, tmp_path: Path) -> None:
    GHN.new(tiny_ghn.config, seed=1).save_pretrained(tmp_path / "other")
    words = ["me/mine", "--private", "--revision", "trial", "--message", "First try", "--json"]
    first, second = push(hub, [str(folder), *words], [str(tmp_path / "other"), "me/mine", "--create-pr"], **TOKEN)
    repository = hub.repositories["me/mine"]
    assert repository.is_private
    assert json.loads(first.out) == {
        "name": f"hf-hub:me/mine@{repository.refs['trial']}",
        "repository": "me/mine",
        "commit": repository.refs["trial"],
        "pull_request": None,
    }
    assert repository.messages == ["First try", "Upload with hf_paraminit: other"]
    assert repository.commits[repository.refs["main"]].keys() == {".gitattributes"}
    assert second.out.splitlines()[0] == f"hf-hub:me/mine@{repository.refs['refs/pr/1']}"
    assert second.out.splitlines()[2] == f"Pull request: {hub.endpoint}/me/mine/discussions/1"


def test_weights_of_another_generation_are_removed_and_other_files_stay(
    hub: HubServer, folder: Path, tiny_ghn: GHN, tmp_path: Path
) -> None:
    tiny_ghn.save_pretrained(tmp_path / "shards", max_shard_size=400_000)
    hub.add("me/mine", {"paper.pdf": b"%PDF", "model_old.safetensors": b""})
    paths = (tmp_path / "shards", folder, folder)
    sharded, single, again = push(hub, *([str(path), "me/mine"] for path in paths), **TOKEN)
    assert (sharded.code, single.code, again.code) == (0, 0, 0)
    repository = hub.repositories["me/mine"]
    first, second = (answer.out.splitlines()[0].partition("@")[2] for answer in (sharded, single))
    names = set(repository.commits[first])
    assert {name for name in names if "-of-" in name} == {p.name for p in (tmp_path / "shards").glob("*-of-*")}
    assert "model.safetensors.index.json" in names
    assert set(repository.commits[second]) == {
        "paper.pdf", "model_old.safetensors", "config.json", "README.md", "model.safetensors"
    }  # fmt: skip
    assert again.out == single.out  # nothing new, so no new commit


def test_a_missing_card_is_written_and_a_present_one_kept(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    carded = Path(shutil.copytree(folder, tmp_path / "carded"))
    (carded / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    (folder / "README.md").unlink()
    push(hub, [str(folder), "me/without"], [str(carded), "me/with"], **TOKEN)
    written, kept = (
        hub.repositories[name].commits[hub.repositories[name].refs["main"]]["README.md"].decode()
        for name in ("me/without", "me/with")
    )
    card = ModelCard(written)
    assert card.data.library_name == "hf_paraminit"
    assert {"hf_paraminit", "weight-initialization", "ghn3"} <= set(card.data.tags)
    assert 'init="hf-hub:me/without"' in card.text
    assert kept == "---\nlicense: mit\n---\n# Mine\n"


def test_a_timm_model_with_predicted_weights_is_pushed(
    hub: HubServer, predictor_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "vit"
    assert main(["init", "test_vit", "--init", f"local-dir:{predictor_folder}", "--output", str(model)]) == 0
    capsys.readouterr()
    (model / "notes.txt").write_text("not for others")
    (answer,) = push(hub, [str(model), "me/vit"], **TOKEN)
    name, use = answer.out.splitlines()
    assert use == f'Use with timm.create_model("{name}", pretrained=True)'
    stored = hub.repositories["me/vit"].commits[name.partition("@")[2]]
    assert stored.keys() == {".gitattributes", "config.json", "model.safetensors"}
    done = hub.run(f"import timm\nprint(timm.create_model({name!r}, pretrained=True).num_classes)")
    assert done.stdout == "1000\n", done.stderr

    record = json.loads((model / "config.json").read_text())
    damages: list[tuple[Callable[[Path], object], str]] = [
        (edit_config(architecture="no_model"), "so it was not pushed"),
        (edit_config(**{**record, "num_classes": 7, "model_args": {"num_classes": 7}}), "so it was not pushed"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100), "not a readable safetensors file"),
        (lambda folder: (folder / "model.safetensors").unlink(), "not a readable safetensors file"),
    ]
    copies = [Path(shutil.copytree(model, tmp_path / f"damaged{i}")) for i in range(len(damages))]
    for (damage, _), copy in zip(damages, copies, strict=True):
        damage(copy)
    hub.requests.clear()
    answers = push(hub, *([str(copy), "me/damaged"] for copy in copies), **TOKEN)
    for (_, said), answer in zip(damages, answers, strict=True):
        assert (answer.code, answer.out) == (1, "")
        assert said in answer.err
    assert hub.requests == []


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-4] ^= 1  # the lowest bit of a float
    (folder / "model.safetensors").write_bytes(content)


def put_nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["ln.weight"][0] = torch.nan
    save_file(tensors, folder / "model.safetensors")


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        record = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**record, **changes}))

    return edit


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda folder: [path.unlink() for path in folder.iterdir()], "nothing to push"),
    "no-config": (lambda folder: (folder / "config.json").unlink(), "nothing to push"),
    "no-weights": (lambda folder: (folder / "model.safetensors").unlink(), "no weights file"),
    "no-json": (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
    "no-predictor": (lambda folder: (folder / "config.json").write_text("{}"), "does not describe a predictor"),
    "bit": (flip_a_bit, "not the file that was saved"),
    "nan": (put_nan, "NaN or infinite values in 1 of"),
    "cut": (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100), "not a readable safetensors"),
    "type": (edit_config(paraminit_type="no-method"), "no initializer 'no-method'"),
    "format": (edit_config(format_version=9), "expected format_version 1, found 9"),
    "path": (edit_config(weights_sha256={"../secret.safetensors": "0" * 64}), "'../secret.safetensors'"),
    "card": (edit_config(metadata={"card": {"titel": "x"}}), "'titel'"),
}


def test_nothing_is_uploaded_from_a_folder_that_would_not_load(
    hub: HubServer, predictor_folder: Path, tmp_path: Path
) -> None:
    for kind, (damage, _) in BROKEN.items():
        damage(Path(shutil.copytree(predictor_folder, tmp_path / kind)))
    (tmp_path / "card" / "README.md").unlink()
    answers = push(hub, *([str(tmp_path / kind), "me/mine"] for kind in BROKEN), **TOKEN)
    for (kind, (_, said)), answer in zip(BROKEN.items(), answers, strict=True):
        assert (answer.code, answer.out) == (1, ""), kind
        assert answer.err.startswith("paraminit: error: "), kind
        assert len(answer.err.splitlines()) == 1, kind
        assert said in answer.err, kind
    assert hub.requests == []
    assert hub.repositories == {}


FAILURES: dict[str, tuple[tuple[int, str], str]] = {
    "forbidden": ((403, ""), "Your token may not write there"),
    "gated": ((403, "GatedRepo"), "accept its terms"),
    "full": ((402, ""), "storage of this account is full"),
    "busy": ((412, ""), "Somebody else has changed the branch"),
    "hasty": ((429, ""), "too many requests"),
    "malformed": ((400, ""), "found the request malformed"),
    "expired": ((401, ""), "hf auth login"),
}


def test_each_refusal_of_the_hub_names_the_way_out(hub: HubServer, folder: Path) -> None:
    hub.faults.refused_pushes = {name: refusal for name, (refusal, _) in FAILURES.items()}
    hub.add("me/gated", {})
    answers = push(hub, *([str(folder), f"me/{name}"] for name in FAILURES), **TOKEN)
    for (name, (_, said)), answer in zip(FAILURES.items(), answers, strict=True):
        assert (answer.code, answer.out) == (1, ""), name
        assert f"Could not push to 'me/{name}'" in answer.err
        assert said in answer.err, name
        assert "hf_secret" not in answer.err
    assert set(hub.repositories) == {"me/gated"}


def test_without_a_token_or_a_proper_name(hub: HubServer, folder: Path) -> None:
    names = ("me/mine", "mine", "a/b/c", "me/spaces in it")
    unknown, *malformed = push(hub, *([str(folder), name] for name in names))
    assert "hf auth login" in unknown.err
    assert "HF_TOKEN" in unknown.err
    for answer in malformed:
        assert "A repository is named `organization/name`" in answer.err
    assert not any(answer.code == 0 for answer in (unknown, *malformed))
    assert hub.repositories == {}


@pytest.mark.parametrize(
    ("away", "said"),
    [({"HF_HUB_OFFLINE": "1"}, "unset HF_HUB_OFFLINE"), ({"HF_ENDPOINT": ""}, "The connection failed")],
)
def test_without_the_hub(hub: HubServer, folder: Path, away: dict[str, str], said: str) -> None:
    (answer,) = push(hub, [str(folder), "me/mine"], **TOKEN, **{k: v or closed_endpoint() for k, v in away.items()})
    assert answer.code == 1
    assert said in answer.err
    assert hub.requests == []

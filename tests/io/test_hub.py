"""Downloads against a local Hub: which requests are made, what the cache gives, and what each failure says."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, closed_endpoint

from hf_paraminit.errors import UnknownInitializerError
from hf_paraminit.io.hub import HubSource, LocalSource, parse_source

REPO = "someone/some-ghn"
CONFIG = b'{"paraminit_type": "ghn3"}'
WEIGHTS = bytes(range(256)) * 4096  # 1 MiB
API = f"GET /api/models/{REPO}"

CLIENT = """
import json, os
from hf_paraminit.errors import PredictorNotFoundError
from hf_paraminit.io.hub import download
try:
    file = download({repo_id!r}, {filename!r}, **{options!r})
    answer = dict(path=str(file.path), commit=file.commit, content=file.path.read_bytes()[:64].hex(),
                  size=file.path.stat().st_size)
except PredictorNotFoundError as error:
    answer = dict(error=str(error), is_os_error=isinstance(error, OSError))
print(json.dumps(answer))
"""

KILLED = f"""
import os, signal, threading, time
from pathlib import Path
from huggingface_hub import constants
from hf_paraminit.io.hub import download
constants.DOWNLOAD_CHUNK_SIZE = 1 << 16  # 10 MB otherwise, so that the first half would not reach the disk
def kill_half_way():
    while not any(path.stat().st_size for path in Path(os.environ["HF_HOME"]).rglob("*.incomplete")):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=kill_half_way, daemon=True).start()
download({REPO!r}, "model.safetensors")
"""


def fetch(
    hub: HubServer,
    filename: str = "config.json",
    repo_id: str = REPO,
    env: dict[str, str] | None = None,
    before: str = "",
    **options: Any,
) -> dict[str, Any]:
    """Call `download` in a process of its own; the server's log holds only this call's requests afterwards."""
    hub.requests.clear()
    done = hub.run(before + CLIENT.format(repo_id=repo_id, filename=filename, options=options), **(env or {}))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"stderr": done.stderr}


@pytest.fixture
def commit(hub: HubServer) -> str:
    return hub.add(REPO, {"config.json": CONFIG, "model.safetensors": WEIGHTS})


def cached_files(hub: HubServer) -> list[str]:
    snapshots = hub.home / "hub" / "models--someone--some-ghn" / "snapshots"
    return sorted(path.name for path in snapshots.rglob("*") if not path.is_dir())


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf-hub:org/repo", HubSource("org/repo")),
        ("hf-hub:org/repo@v1.2", HubSource("org/repo", "v1.2")),
        ("hf-hub:org/repo@refs/pr/4", HubSource("org/repo", "refs/pr/4")),
        ("HF_Hub:Org/Repo", HubSource("Org/Repo")),
        ("local-dir:/a/b:c@d", LocalSource(Path("/a/b:c@d"))),
        ("local-dir:~/x", LocalSource(Path.home() / "x")),
    ],
)
def test_source_is_parsed(text: str, source: HubSource | LocalSource) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize(
    "text", ["ghn3", "hf-hub", "hf-hub:", "hf-hub:@main", "hf-hub:org/repo@", "local-dir:", "s3:x"]
)
def test_source_without_meaning_is_refused(text: str) -> None:
    with pytest.raises(UnknownInitializerError, match=r"hf-hub:org/repo@revision.*local-dir:PATH"):
        parse_source(text)


def test_small_file_then_cached_branch_then_cached_commit(hub: HubServer, commit: str) -> None:
    first = fetch(hub)
    assert (first["commit"], bytes.fromhex(first["content"])) == (commit, CONFIG)
    resolve = f"/{REPO}/resolve/{commit}/config.json"
    assert hub.requests == [API, f"HEAD {resolve}", f"GET {resolve}"]
    assert any("hf_paraminit/" in agent for agent in hub.user_agents)

    assert fetch(hub)["path"] == first["path"]
    assert hub.requests == [API]
    assert fetch(hub, revision=commit)["path"] == first["path"]
    assert hub.requests == []


def test_large_file_comes_from_the_redirect(hub: HubServer, commit: str) -> None:
    # The variable makes huggingface_hub show its progress bar where there is no terminal.
    answer = fetch(hub, "model.safetensors", revision=commit, env={"TQDM_POSITION": "-1"})
    assert answer["size"] == len(WEIGHTS)
    assert [line.split("/")[0] + line.split("/")[1] for line in hub.requests] == ["HEAD someone", "GET large-files"]
    assert "100%" in answer["stderr"]


def test_moved_branch_gives_the_new_commit_and_keeps_the_old(hub: HubServer, commit: str) -> None:
    fetch(hub)
    moved = hub.add(REPO, {"config.json": b"{}"})
    assert fetch(hub)["commit"] == moved
    assert bytes.fromhex(fetch(hub, revision=commit)["content"]) == CONFIG
    assert hub.requests == []


def test_tag_and_branch_are_resolved(hub: HubServer, commit: str) -> None:
    hub.repositories[REPO].refs["v1.2"] = commit
    hub.add(REPO, {"config.json": b"{}"})
    assert fetch(hub, revision="v1.2")["commit"] == commit
    assert hub.requests[0] == f"{API}/revision/v1.2"


@pytest.mark.parametrize("away", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "closed"}, {"local_files_only": "True"}])
def test_cached_branch_is_used_without_the_hub(hub: HubServer, commit: str, away: dict[str, str]) -> None:
    fetch(hub)
    if "local_files_only" in away:
        answer = fetch(hub, local_files_only=True)
    else:
        answer = fetch(hub, env={k: v.replace("closed", closed_endpoint()) for k, v in away.items()})
    assert answer["commit"] == commit
    assert hub.requests == []


def test_cached_branch_is_used_when_the_hub_answers_with_errors(hub: HubServer, commit: str) -> None:
    fetch(hub)
    hub.faults.status = 503
    assert fetch(hub)["commit"] == commit


@pytest.mark.parametrize("away", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "closed"}, {"local_files_only": "True"}])
def test_nothing_cached_without_the_hub_names_three_ways_out(hub: HubServer, commit: str, away: dict[str, str]) -> None:
    if "local_files_only" in away:
        error = fetch(hub, local_files_only=True)["error"]
    else:
        error = fetch(hub, env={k: v.replace("closed", closed_endpoint()) for k, v in away.items()})["error"]
    assert hub.requests == []
    assert REPO in error
    assert "'main'" in error
    assert "'config.json'" in error
    for way_out in ("HF_HUB_OFFLINE", "local-dir:PATH", "load_predictor", 'init="ghn3"'):
        assert way_out in error


def test_other_file_of_a_cached_commit_offline_names_three_ways_out(hub: HubServer, commit: str) -> None:
    fetch(hub)
    error = fetch(hub, "model.safetensors", env={"HF_HUB_OFFLINE": "1"})["error"]
    assert 'init="ghn3"' in error
    assert "model.safetensors" in error


def test_missing_file(hub: HubServer, commit: str) -> None:
    answer = fetch(hub, "nothing.json")
    assert hub.requests == [API, f"HEAD /{REPO}/resolve/{commit}/nothing.json"]
    assert "no such file at this revision" in answer["error"]
    assert answer["is_os_error"]


def test_unknown_revision(hub: HubServer, commit: str) -> None:
    error = fetch(hub, revision="v9")["error"]
    assert hub.requests == [f"{API}/revision/v9"]
    assert "no such branch, tag or commit" in error
    assert "'v9'" in error


def test_unknown_repository(hub: HubServer) -> None:
    error = fetch(hub)["error"]
    assert hub.requests == [API]
    assert "no such repository, or it is private" in error
    assert "hf auth login" in error


def test_gated_repository_opens_with_a_token(hub: HubServer, commit: str) -> None:
    hub.repositories[REPO].is_gated = True
    assert "accept its terms" in fetch(hub)["error"]
    assert fetch(hub, token="hf_secret")["commit"] == commit


@pytest.mark.parametrize("repo_id", ["a/b/c", "someone/spaces in name", "-x/y"])
def test_malformed_repository_name(hub: HubServer, repo_id: str) -> None:
    error = fetch(hub, repo_id=repo_id)["error"]
    assert hub.requests == []
    assert "organization/name" in error


def test_file_name_that_leaves_the_repository(hub: HubServer, commit: str) -> None:
    assert "without '..'" in fetch(hub, "../../secret.json")["error"]
    assert hub.requests == [API]


def test_refused_request_keeps_the_status(hub: HubServer, commit: str) -> None:
    hub.faults.status = 418
    error = fetch(hub)["error"]
    assert "The Hub refused the request" in error
    assert "418" in error
    hub.faults.status, hub.faults.status_of_files = None, 418
    error = fetch(hub)["error"]
    assert 'init="ghn3"' in error
    assert "418" in error


def test_interrupted_download_is_resumed(hub: HubServer, commit: str) -> None:
    hub.faults.interruptions = 1
    answer = fetch(hub, "model.safetensors")
    assert answer["size"] == len(WEIGHTS)
    assert len([line for line in hub.requests if "large-files" in line]) == 2


def test_download_that_never_ends_well_leaves_nothing_in_the_cache(hub: HubServer, commit: str) -> None:
    hub.faults.interruptions = 100
    assert "The connection failed" in fetch(hub, "model.safetensors")["error"]
    assert cached_files(hub) == []
    hub.faults.interruptions = 0
    assert fetch(hub, "model.safetensors")["size"] == len(WEIGHTS)


def test_full_disk_leaves_nothing_in_the_cache(hub: HubServer, commit: str) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
    assert "disk space" in fetch(hub, "model.safetensors", before=limit)["error"]
    assert cached_files(hub) == []


def test_killed_download_starts_again(hub: HubServer, commit: str) -> None:
    hub.faults.body_delay = 9
    done = hub.run(KILLED)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert cached_files(hub) == []
    hub.faults.body_delay = 0
    answer = fetch(hub, "model.safetensors")
    assert (answer["size"], bytes.fromhex(answer["content"])) == (len(WEIGHTS), WEIGHTS[:64])


@pytest.mark.slow  # huggingface_hub tries five times
@pytest.mark.parametrize("filename", ["config.json", "model.safetensors"])
def test_hub_that_is_too_slow(hub: HubServer, commit: str, filename: str) -> None:
    hub.faults.delay = 3
    error = fetch(hub, filename, env={"HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"})["error"]
    assert "took too long" in error
    assert "HF_HUB_DOWNLOAD_TIMEOUT" in error
    assert cached_files(hub) == []


@pytest.mark.parametrize(
    ("filename", "fault", "value", "said"),
    [
        ("model.safetensors", "extra_size", 7, "Consistency check failed"),
        ("model.safetensors", "missing_bytes", 1000, "should be of size 1048576 but has size 1047576"),
        ("model.safetensors", "spoiled_body", True, "Hub announced"),
        ("model.safetensors", "wrong_hash", True, "Hub announced"),
        ("model.safetensors", "wrong_commit", True, "a file of commit"),
        ("config.json", "spoiled_body", True, "Hub announced"),
        ("config.json", "wrong_commit", True, "a file of commit"),
    ],
)
def test_lying_server_leaves_nothing_in_the_cache(
    hub: HubServer, commit: str, filename: str, fault: str, value: int, said: str
) -> None:
    setattr(hub.faults, fault, value)
    assert said in fetch(hub, filename)["error"]
    assert cached_files(hub) == []
    setattr(hub.faults, fault, 0)
    assert fetch(hub, filename)["commit"] == commit


def test_redirect_to_another_host_gets_no_token(hub: HubServer, commit: str) -> None:
    hub.hosts.clear()
    assert fetch(hub, "model.safetensors", token="hf_secret")["size"] == len(WEIGHTS)
    api, head, get = hub.requests
    assert hub.with_token == [api, head]
    assert get.startswith("GET /large-files/")
    assert hub.hosts == ["127.0.0.1", "127.0.0.1", "localhost"]


def test_pushed_folder_reads_back(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "predictor"
    folder.mkdir()
    files = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "README.md": b"---\nlicense: mit\n---\n"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    done = hub.run(
        "from huggingface_hub import HfApi\n"
        "hub = HfApi(token='hf_secret')\n"
        "hub.create_repo('someone/pushed', exist_ok=True)\n"
        f"print(hub.upload_folder(repo_id='someone/pushed', folder_path={str(folder)!r}).oid)"
    )
    assert done.returncode == 0, done.stderr
    pushed = done.stdout.split()[-1]
    stored = hub.repositories["someone/pushed"].commits[pushed]
    assert {name: stored[name] for name in files} == files
    assert fetch(hub, "model.safetensors", "someone/pushed")["commit"] == pushed


def test_timm_loads_from_this_hub(hub: HubServer, tmp_path: Path) -> None:
    """The server is close enough to the real one for timm's own push and `hf-hub:` load."""
    done = hub.run(
        "import timm, torch\n"
        "from timm.models import push_to_hf_hub\n"
        "model = timm.create_model('test_vit', num_classes=3)\n"
        "push_to_hf_hub(model, 'someone/tiny-vit', token='hf_secret')\n"
        "again = timm.create_model('hf-hub:someone/tiny-vit', pretrained=True)\n"
        "torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)"
    )
    assert done.returncode == 0, done.stderr
    files = [line for line in hub.requests if "/resolve/main/" in line]
    assert "HEAD /someone/tiny-vit/resolve/main/config.json" in files
    assert "GET /someone/tiny-vit/resolve/main/config.json" in files
    assert any(line.startswith("GET /large-files/") for line in hub.requests)


def test_snapshot_and_revision_through_this_hub(hub: HubServer, commit: str) -> None:
    done = hub.run(
        "from huggingface_hub import HfApi, snapshot_download\n"
        f"print(HfApi().resolve_revision({REPO!r}).resolved, snapshot_download({REPO!r}))"
    )
    assert done.returncode == 0, done.stderr
    resolved, path = done.stdout.split()
    assert resolved == commit
    assert sorted(path.name for path in Path(path).iterdir()) == ["config.json", "model.safetensors"]
    revision, snapshot, *rest = hub.requests
    assert revision == API
    assert snapshot == f"{API}/revision/main"
    assert rest[0] == f"{API}/tree/{commit}"
    assert {line for line in rest if line.startswith("HEAD")} == {
        f"HEAD /{REPO}/resolve/{commit}/{name}" for name in ("config.json", "model.safetensors")
    }


def test_transformers_takes_all_files_from_one_commit(hub: HubServer, tmp_path: Path) -> None:
    """One question per load, then files of that commit: the habit that our own loader has too."""
    made = hub.run(
        "from transformers import ViTConfig, ViTForImageClassification as ViT\n"
        "config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,\n"
        "                   image_size=16, patch_size=8)\n"
        f"ViT(config).save_pretrained({str(tmp_path / 'vit')!r})"
    )
    assert made.returncode == 0, made.stderr
    commit = hub.add("someone/vit", {path.name: path.read_bytes() for path in (tmp_path / "vit").iterdir()})
    load = (
        "from transformers import AutoModelForImageClassification as Auto\n"
        "Auto.from_pretrained('someone/vit')\n"
        "print('loaded')"
    )
    for files_asked_for in ({"config.json", "model.safetensors"}, set()):
        hub.requests.clear()
        done = hub.run(load)
        assert "loaded" in done.stdout, done.stderr
        assert hub.requests.count("GET /api/models/someone/vit") == 1
        resolved = [line for line in hub.requests if "/resolve/" in line]
        assert all(f"/resolve/{commit}/" in line for line in resolved)
        assert {line.rpartition("/")[2] for line in resolved if line.startswith("HEAD")} >= files_asked_for
        assert bool(resolved) == bool(files_asked_for)

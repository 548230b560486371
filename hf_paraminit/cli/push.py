"""Upload a predictor or a model with learned initial weights to the Hugging Face Hub.

DIR is a predictor's folder, as `paraminit convert` and `paraminit train` write it, or a timm model's folder, as
`paraminit init` writes it. It is loaded first, as a user would load it, and nothing is uploaded if that fails. Only
config.json, the weights and README.md are uploaded, in one commit; other files in DIR stay here. Log in before with
`hf auth login`, or set HF_TOKEN.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import CommitInfo

from hf_paraminit.cli.arguments import Subparsers, add_json_switch, verb_parser
from hf_paraminit.cli.timm_models import host_errors
from hf_paraminit.errors import CheckpointError, PredictorNotFoundError
from hf_paraminit.initializers.predictor import load_predictor
from hf_paraminit.io.pretrained import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, push_folder
from hf_paraminit.io.safetensors_file import is_finite, load_tensors
from hf_paraminit.io.upload import upload

EXAMPLES = """
paraminit push ./my-ghn me/my-ghn
paraminit push ./my-ghn me/my-ghn --private --revision trial --message 'Trained for longer'
paraminit push ./my-ghn somebody/their-ghn --create-pr
paraminit push ./resnet50-ghn3 me/resnet50-ghn3
"""


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "push", __doc__, examples=EXAMPLES)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of a predictor or of a timm model")
    parser.add_argument("repository", metavar="ORG/REPO", help="repository on the Hub; made when needed")
    # Absent, the owner's own default decides, which may be private.
    parser.add_argument("--private", action="store_const", const=True, help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, made when needed (default: main)")
    parser.add_argument("--message", metavar="TEXT", help="message of the commit")
    parser.add_argument("--create-pr", action="store_true", help="propose the commit as a pull request")
    add_json_switch(parser)


def run(arguments: argparse.Namespace) -> None:
    push, use = _kind_of(arguments.folder)
    commit = push(
        arguments.folder,
        arguments.repository,
        message=arguments.message or f"Upload with hf_paraminit: {arguments.folder.resolve().name}",
        private=arguments.private,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
    )
    name = f"hf-hub:{arguments.repository}@{commit.oid}"
    if arguments.json:
        record = {"name": name, "repository": arguments.repository, "commit": commit.oid, "pull_request": commit.pr_url}
        print(json.dumps(record, indent=2))
    else:
        print(name)
        print(f"Use with {use.format(name=name)}")
        if commit.pr_url:
            print(f"Pull request: {commit.pr_url}")


def _kind_of(folder: Path) -> tuple[Callable[..., CommitInfo], str]:
    """How to push this folder, and how to use what was pushed."""
    record = _read_config(folder)
    if isinstance(record, dict) and "architecture" in record and "paraminit_type" not in record:
        return _push_timm_model, 'timm.create_model("{name}", pretrained=True)'
    return _push_predictor, 'init="{name}"'


def _read_config(folder: Path) -> Any:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise PredictorNotFoundError(
            f"There is nothing to push in {folder}: it has no {CONFIG_FILE}. Name a folder that `paraminit convert`, "
            "`paraminit train`, `paraminit init` or save_pretrained has written."
        )
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError):
        return None  # loading says what is wrong with it


def _push_predictor(folder: Path, repo_id: str, **options: Any) -> CommitInfo:
    load_predictor(f"local-dir:{folder}")
    return push_folder(folder, repo_id, **options)


def _push_timm_model(folder: Path, repo_id: str, **options: Any) -> CommitInfo:
    tensors = load_tensors(folder / WEIGHTS_FILE)  # timm would take a pickle beside it instead of a missing one
    if spoiled := [name for name, tensor in tensors.items() if tensor.is_floating_point() and not is_finite(tensor)]:
        raise CheckpointError(f"{folder / WEIGHTS_FILE}: NaN or infinite values in {', '.join(spoiled)}; not pushed.")
    with host_errors(f"timm cannot load {folder}, so it was not pushed", OSError):
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    names = [CONFIG_FILE, WEIGHTS_FILE, *([CARD_FILE] if (folder / CARD_FILE).is_file() else [])]
    return upload(repo_id, {name: folder / name for name in names}, **options)

"""Uploading to the Hugging Face Hub: one commit with exactly the files that are named."""

import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from hf_paraminit import __version__
from hf_paraminit.errors import OutputError
from hf_paraminit.io.hub import LIBRARY_NAME

_LOGIN = (
    "The Hub does not know you: log in with `hf auth login`, or set HF_TOKEN, with a token that has the permission to "
    "write. Tokens are made on the Hub under Settings, Access Tokens."
)
_BY_STATUS = {
    400: "The Hub found the request malformed: check repository name and branch.",
    401: _LOGIN,
    402: "The storage of this account is full: free some of it, or push to another one.",
    403: "Your token may not write there: use one with the permission to write, ask the organization to let you in, "
    "propose the change with a pull request, or push to a repository of your own.",
    404: "There is no such repository or branch, or it is private: check the spelling, and that your token may see it.",
    409: "Somebody else is changing the repository: run the same command again.",
    412: "Somebody else has changed the branch meanwhile: run the same command again.",
    429: "The Hub has had too many requests from you: wait some minutes, then run the same command again.",
}
# First match wins, so a class stands above its bases.
_BY_CLASS: tuple[tuple[type[Exception], str], ...] = (
    (OfflineModeIsEnabled, "Offline mode is on: unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE to push."),
    (HFValidationError, "A repository is named `organization/name`, with letters, digits, '-', '_' and '.'."),
    (GatedRepoError, "The repository is gated: accept its terms on its Hub page, then log in with `hf auth login`."),
    (RevisionNotFoundError, "The repository has no such branch: leave it out to push to the default branch."),
    (RepositoryNotFoundError, _BY_STATUS[404] + " " + _LOGIN),
    (HfHubHTTPError, "The Hub failed: run the same command again later."),
    (httpx.HTTPError, "The connection failed: check network, proxy and HF_ENDPOINT, then run the same command again."),
    (OSError, "The connection failed or a file could not be read: check both, then run the same command again."),
    (ValueError, "The Hub's answer, or an argument, is not valid: check repository name, branch and HF_ENDPOINT."),
)
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def upload(
    repo_id: str,
    files: Mapping[str, Path | bytes],
    *,
    message: str,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
) -> CommitInfo:
    """Put files into a model repository with one commit; the repository and the branch are made when needed.

    Other files of the repository stay, except weights under the usual names that the new files no longer have: a
    repository must not hold two generations of them.

    Args:
        repo_id: `organization/name`; your user name counts as an organization.
        files: content, or where it lies, by path in the repository.
        message: of the commit.
        private: for a new repository; None for the default of its owner.
        revision: branch; None for the default one.
        create_pr: propose the commit as a pull request to that branch.
        token: access token, None for the saved one.

    Returns:
        The commit; `oid` is its full hash, `pr_url` the pull request if there is one.

    Raises:
        OutputError: any failure; the message says what to do next, and the branch is as before.
    """
    hub = HfApi(token=token, library_name=LIBRARY_NAME, library_version=__version__)
    try:
        if "/" not in repo_id:
            raise HFValidationError("its owner is missing")
        hub.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not create_pr:
            hub.create_branch(repo_id, branch=revision, exist_ok=True)
        present = hub.list_repo_files(repo_id, revision=revision)
        stale = [path for path in present if _WEIGHTS.fullmatch(path) and path not in files]
        operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
            *(CommitOperationAdd(path, content) for path, content in files.items()),
            *(CommitOperationDelete(path) for path in stale),
        ]
        return hub.create_commit(
            repo_id, operations, commit_message=message, revision=revision, create_pr=create_pr or None
        )
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise OutputError(_explain(error, repo_id, revision)) from error


def _explain(error: Exception, repo_id: str, revision: str | None) -> str:
    response = getattr(error, "response", None)
    by_class = next(step for kind, step in _BY_CLASS if isinstance(error, kind))
    specific = isinstance(error, GatedRepoError | RevisionNotFoundError)
    next_step = by_class if specific or response is None else _BY_STATUS.get(response.status_code, by_class)
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"Could not push to {repo_id!r}, branch {revision or 'main'!r}. {next_step} ({reason})"

"""Predictors on the Hugging Face Hub: naming a source, and downloading its files pinned to one commit."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils import httpx  # its HTTP client, whichever package that is; connection errors are its own

from hf_paraminit import __version__
from hf_paraminit.errors import PredictorNotFoundError, UnknownInitializerError

LIBRARY_NAME = "hf_paraminit"

_WAYS_OUT_OFFLINE = (
    "The Hub did not deliver the file and the local cache does not have it. Three ways out: (1) go online once, with "
    'HF_HUB_OFFLINE unset, to fill the cache; (2) use a local file or folder: init="local-dir:PATH" or '
    'hf_paraminit.load_predictor(PATH); (3) use the predictor that ships with the package: init="ghn3".'
)
# First match wins, so a class stands above its bases: a gated repository is a RepositoryNotFoundError, a file that
# is missing locally is an EntryNotFoundError, and most others are an HfHubHTTPError.
_NEXT_STEPS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (
        GatedRepoError,
        "The repository is gated: accept its terms on its Hub page, then log in with `hf auth login` or pass a token.",
    ),
    (
        RepositoryNotFoundError,
        "There is no such repository, or it is private: check the spelling, and log in with `hf auth login` if it is "
        "private.",
    ),
    (RevisionNotFoundError, "The repository has no such branch, tag or commit: check the part after '@'."),
    ((LocalEntryNotFoundError, RevisionResolutionError), _WAYS_OUT_OFFLINE),
    (EntryNotFoundError, "The repository has no such file at this revision: look at its list of files on the Hub."),
    (HfHubHTTPError, "The Hub refused the request: try again later, or log in again with `hf auth login`."),
    (HFValidationError, "A repository is named `organization/name`, with letters, digits, '-', '_' and '.'."),
    (
        ValueError,
        "The file's path or the Hub's answer is not valid: name a file by its path inside the repository, without "
        "'..', and check HF_ENDPOINT if it is set.",
    ),
    (
        httpx.TimeoutException,
        "The Hub took too long: try again, or give it more seconds with HF_HUB_DOWNLOAD_TIMEOUT and "
        "HF_HUB_ETAG_TIMEOUT. " + _WAYS_OUT_OFFLINE,
    ),
    (httpx.HTTPError, "The connection failed: check network and proxy, then try again. " + _WAYS_OUT_OFFLINE),
    (OSError, "The file could not be fetched completely or not be stored: check network and disk space, try again."),
)


@dataclass(frozen=True)
class HubSource:
    """A repository on the Hub; `revision` is a branch, tag or commit, None for the default branch."""

    repo_id: str
    revision: str | None = None


@dataclass(frozen=True)
class LocalSource:
    """A folder on this machine; it need not exist yet."""

    path: Path


Source = HubSource | LocalSource


@dataclass(frozen=True)
class HubFile:
    """A downloaded file, and the full commit hash that it belongs to."""

    path: Path
    repo_id: str
    filename: str
    commit: str


def parse_source(source: str) -> Source:
    """Read `"hf-hub:org/repo"`, `"hf-hub:org/repo@revision"` or `"local-dir:PATH"`; nothing is looked up.

    Args:
        source: the text; the part before the colon is case-insensitive, and `-` equals `_` there.

    Raises:
        UnknownInitializerError: another prefix, or nothing where the repository, revision or path should be.
    """
    prefix, colon, rest = source.partition(":")
    kind = prefix.strip().lower().replace("_", "-")
    if colon and kind == "local-dir" and rest:
        return LocalSource(Path(rest).expanduser())
    repo_id, at, revision = rest.partition("@")
    if colon and kind == "hf-hub" and repo_id and (revision or not at):
        return HubSource(repo_id, revision or None)
    raise UnknownInitializerError(
        f"{source!r} does not name a predictor source. Write 'hf-hub:org/repo', 'hf-hub:org/repo@revision' or "
        "'local-dir:PATH'."
    )


def download(
    repo_id: str,
    filename: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> HubFile:
    """Fetch one file of a model repository into the Hub cache, or find it there.

    The revision is resolved to a commit first and the file is taken at that commit, so several files fetched with
    `revision=first.commit` belong together. A cached file of a full commit hash needs no request. When the Hub cannot
    be reached, the commit that a branch last pointed to is used if it is cached.

    Args:
        repo_id: `organization/name`.
        filename: path inside the repository.
        revision: branch, tag or commit; None for the default branch.
        cache_dir: None for the cache that all Hugging Face libraries share.
        local_files_only: do not use the network.
        token: access token, True for the saved one, False for none, None for the saved one if there is one.

    Raises:
        PredictorNotFoundError: any failure; the message says what to do next.
    """
    try:
        commit = _resolve(repo_id, revision, cache_dir, local_files_only, token)
        was_cached = try_to_load_from_cache(repo_id, filename, cache_dir, commit)
        path = Path(
            hf_hub_download(
                repo_id,
                filename,
                revision=commit,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                token=token,
                library_name=LIBRARY_NAME,
                library_version=__version__,
            )
        )
        if not isinstance(was_cached, str):
            _require_commit(path, filename, commit)
            _verify(path)
    except (EntryNotFoundError, RevisionResolutionError, httpx.HTTPError, OSError, ValueError) as error:
        raise PredictorNotFoundError(_explain(error, repo_id, revision, filename)) from error
    return HubFile(path=path, repo_id=repo_id, filename=filename, commit=commit)


def _resolve(
    repo_id: str, revision: str | None, cache_dir: str | Path | None, local_files_only: bool, token: str | bool | None
) -> str:
    """Full hash of the commit that a branch or tag points to, from the Hub or else from the cache."""
    hub = HfApi(library_name=LIBRARY_NAME, library_version=__version__)
    return hub.resolve_revision(
        repo_id, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
    ).resolved


def _require_commit(path: Path, filename: str, commit: str) -> None:
    """Refuse a file of another commit than the one asked for; the cache files it under the commit the Hub named."""
    named = path.parents[len(Path(filename).parts) - 1].name
    if named != commit:
        path.unlink()
        raise OSError(f"the Hub answered with a file of commit {named}, asked for was {commit}; it was removed")


def _verify(path: Path) -> None:
    """Compare a new file with the hash under which the cache stores it, and remove it if they differ.

    huggingface_hub compares sizes only. The cache names the stored file by the hash that the Hub announced: SHA-256
    of the content for large files, git's blob hash for small ones. Where the cache holds plain copies instead of
    symbolic links (Windows), nothing is compared.
    """
    if not path.is_symlink():
        return
    stored = path.parent / path.readlink()
    if re.fullmatch(r"[0-9a-f]{64}", stored.name):
        digest = hashlib.sha256()
    elif re.fullmatch(r"[0-9a-f]{40}", stored.name):
        digest = hashlib.sha1(b"blob %d\0" % stored.stat().st_size)
    else:
        return  # a mirror's own kind of tag
    with stored.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != stored.name:
        path.unlink()
        stored.unlink()
        raise OSError(f"the content has hash {digest.hexdigest()}, the Hub announced {stored.name}; it was removed")


def _explain(error: Exception, repo_id: str, revision: str | None, filename: str) -> str:
    next_step = next(step for kinds, step in _NEXT_STEPS if isinstance(error, kinds))
    cause = error.__cause__ or error  # huggingface_hub wraps what happened on the network in a general remark
    reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    return f"Could not get {filename!r} of {repo_id!r} at revision {revision or 'main'!r}. {next_step} ({reason})"

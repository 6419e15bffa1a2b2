"""Where a publication goes: whether it may, and what is there now."""

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import (
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)

from speechbrain_stablequant import __version__
from speechbrain_stablequant.core.plan import PLAN_FORMAT
from speechbrain_stablequant.errors import PublishError, nearest
from speechbrain_stablequant.publishing.hub_errors import (
    TOKEN_ADVICE,
    explained,
)
from speechbrain_stablequant.publishing.manifest import (
    MANIFEST,
    FileHash,
    read_manifest,
)

__all__ = [
    "HUB_FILES",
    "Destination",
    "Remote",
    "check_destination",
    "connect",
    "progress_bars",
]

HUB_FILES = frozenset({".gitattributes"})  # the hub makes it, and needs it
_TIMEOUT = 20  # seconds, for the first answer of the hub
_LARGEST_JSON = 1 << 26  # bytes; what is larger is no plan of ours


@dataclass(frozen=True)
class Destination:
    """A repository on a model hub.

    Arguments
    ---------
    repo : str
        ``"user/name"`` or ``"organization/name"``.
    private : bool, optional
        Who may see it; by default the hub's choice for a new repository, and
        whatever an existing one is.
    revision : str, optional
        Branch, by default ``main``; made if it is not there.
    token : str, optional
        By default what ``HF_TOKEN`` or ``hf auth login`` has.
    overwrite : bool
        Replace whatever is there; else only what an earlier publication has
        put there. The hub keeps earlier commits in any case.
    """

    repo: str
    private: Optional[bool] = None
    revision: Optional[str] = None
    token: Optional[str] = field(default=None, repr=False)
    overwrite: bool = False


@dataclass(frozen=True)
class Remote:
    """What is at a destination now.

    Arguments
    ---------
    url : str
        Page of the repository.
    state : str
        ``"absent"``, ``"empty"`` (also a branch with nothing of its own yet:
        it is not there, or stands where ``main`` does), ``"ours"`` (an
        earlier publication) or ``"other"``.
    user : str
        Whose token it is.
    private : bool, optional
        Who may see it; None where it is absent.
    commit : str, optional
        Head of the branch, or of ``main`` where the branch is yet to be made.
    has_branch : bool
        Whether the branch is there.
    files : mapping of str to str
        Hash of each file on the branch.
    published : mapping of str to FileHash, optional
        What the earlier publication consisted of, if it says so.
    """

    url: str
    state: str
    user: str
    private: Optional[bool] = None
    commit: Optional[str] = None
    has_branch: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    published: Optional[Mapping[str, FileHash]] = None


def connect(destination: Destination) -> HfApi:
    """Return the hub's client."""
    return HfApi(
        token=destination.token or get_token(),
        library_name="speechbrain_stablequant",
        library_version=__version__,
    )


@contextlib.contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """Hide the client's progress bars, unless they are to be shown."""
    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def check_destination(destination: Destination) -> Remote:
    """Find out whether one may publish there, before anything takes long.

    Arguments
    ---------
    destination : Destination
        Where to.

    Returns
    -------
    Remote
        What is there now.

    Raises
    ------
    PublishError
        If the name is wrong, the hub cannot be reached, the token is missing
        or may not write there, or something else is there already.
    """
    check_names(destination.repo, destination.revision)
    api = connect(destination)
    if api.token is None:
        raise PublishError(f"There is no token for the hub. {TOKEN_ADVICE}")
    with explained(destination.repo):
        info = _info(api, destination)
        account = api.whoami()
    _check_account(account, destination.repo)
    url = f"{api.endpoint}/{destination.repo}"
    user = str(account.get("name"))
    if info is None:
        return Remote(url, "absent", user)
    with explained(destination.repo):
        remote = _remote(api, destination, info, url, user)
    _check_remote(remote, destination)
    return remote


# -- names --------------------------------------------------------------------


def check_names(repo: str, branch: Optional[str] = None) -> None:
    """Refuse names that no hub would take; nothing is asked of the hub.

    Raises
    ------
    PublishError
        If one of them is no name.
    """
    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise HFValidationError("It has to be 'user/name'")
    except HFValidationError as err:
        reason = str(err).strip().rstrip(".")
        raise PublishError(
            f"'{repo}' is no name of a repository: {reason}.{_meant(repo)}"
        ) from err
    if branch is None:
        return
    if re.fullmatch("[0-9a-f]{40}", branch):
        raise PublishError(
            f"'{branch}' is a commit; give the name of a branch to publish to."
        )
    if not re.fullmatch(r"(?!refs/|[-./])(?!.*(\.\.|//))[\w./-]+", branch):
        raise PublishError(
            f"'{branch}' is no name of a branch: letters, digits and - _ . / "
            "make one, such as 'int8'."
        )


def _meant(repo: str) -> str:
    """Return a hint with the name in a URL, or of the right form."""
    parts = [p for p in re.sub(r"^\w+://[^/]*", "", str(repo)).split("/") if p]
    found = "/".join(re.sub(r"[^\w.-]+", "-", part) for part in parts[:2])
    try:
        validate_repo_id(found)
    except HFValidationError:
        return ""
    if len(parts) < 2:
        return f" Put your user name or organization first: 'user/{found}'."
    return f" Did you mean '{found}'?"


# -- the account --------------------------------------------------------------


def _check_account(account: dict, repo: str) -> None:
    """Refuse a token that may not write to the namespace of a repository."""
    namespace = repo.split("/")[0]
    user = str(account.get("name"))
    token = (account.get("auth") or {}).get("accessToken") or {}
    roles = {user: "admin"}
    for org in account.get("orgs") or []:
        roles[str(org.get("name"))] = org.get("roleInOrg")
    scopes = _write_scopes(token)
    roles.update((name.split("/")[0], None) for name in scopes or ())
    known = {name.lower(): role for name, role in roles.items()}
    if token.get("role") == "read" or scopes == []:
        raise PublishError(
            f"{repo}: The token of {user} may only read. {TOKEN_ADVICE}"
        )
    if namespace.lower() not in known:
        raise PublishError(
            f"{repo}: The token of {user} may not write to '{namespace}', "
            "which is neither that user nor one of their organizations."
            + nearest(namespace, roles)
        )
    if known[namespace.lower()] == "read":
        raise PublishError(
            f"{repo}: {user} may only read in '{namespace}'. Ask an "
            "administrator of that organization for the role 'write', or "
            "choose another destination."
        )


def _write_scopes(token: dict) -> Optional[list[str]]:
    """Return where a fine-grained token may write; None: no such token."""
    scoped = (token.get("fineGrained") or {}).get("scoped")
    if token.get("role") != "fineGrained" or not isinstance(scoped, list):
        return None
    return [
        str((scope.get("entity") or {}).get("name"))
        for scope in scoped
        if any(
            str(p).startswith("repo.") and str(p).endswith("write")
            for p in scope.get("permissions") or ()
        )
    ]


# -- the repository -----------------------------------------------------------


def _info(api: HfApi, destination: Destination):
    """Return what the hub knows about the repository, None if it is not."""
    repo = destination.repo
    try:
        return api.model_info(repo, timeout=_TIMEOUT, files_metadata=True)
    except RepositoryNotFoundError as err:
        # Also said of one that is gated or disabled for this token: 403.
        if err.response.status_code == 403:
            raise
        return None


def _remote(api, destination, main, url: str, user: str) -> Remote:
    repo, branch = destination.repo, destination.revision
    info, has_branch = main, True
    if branch not in (None, "main"):
        try:
            asked = {"timeout": _TIMEOUT, "files_metadata": True}
            info = api.model_info(repo, revision=branch, **asked)
        except RevisionNotFoundError:
            has_branch = False
    files = {s.rfilename: _hash_of(s) for s in info.siblings or []}
    state, published = "empty", None
    its_own = branch in (None, "main") or info.sha != main.sha
    if its_own and set(files) - HUB_FILES:
        published = read_manifest(_read(api, repo, info, MANIFEST))
        ours = published is not None or _is_plan(
            _read(api, repo, info, "plan.json")
        )
        state = "ours" if ours else "other"
    return Remote(
        url=url,
        state=state,
        user=user,
        private=info.private,
        commit=info.sha,
        has_branch=has_branch,
        files=files,
        published=published,
    )


def _read(api: HfApi, repo: str, info, name: str) -> bytes:
    """Return the content of a small file; nothing if there is none."""
    sizes = {s.rfilename: s.size or 0 for s in info.siblings}
    if sizes.get(name, _LARGEST_JSON) >= _LARGEST_JSON:
        return b""
    with tempfile.TemporaryDirectory() as cache, progress_bars(False):
        path = api.hf_hub_download(
            repo, name, revision=info.sha, cache_dir=cache
        )
        return Path(path).read_bytes()


def _hash_of(sibling) -> str:
    """Return the hash of a file's content, or of its blob where not large."""
    return sibling.lfs["sha256"] if sibling.lfs else sibling.blob_id


def _is_plan(data: bytes) -> bool:
    try:
        return json.loads(data)["format"] == PLAN_FORMAT
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _check_remote(remote: Remote, destination: Destination) -> None:
    repo, wanted = destination.repo, destination.private
    if wanted is not None and wanted != remote.private:
        now = "private" if remote.private else "public"
        raise PublishError(
            f"{repo} is {now} already, and publishing does not change that. "
            f"Change it in {remote.url}/settings, or do not ask for it."
        )
    if ".gitignore" in remote.files:
        raise PublishError(
            f"{repo} has a .gitignore, by which the hub may leave out files. "
            "Delete it there, then repeat the command."
        )
    if remote.state == "other" and not destination.overwrite:
        names = sorted(set(remote.files) - HUB_FILES)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise PublishError(
            f"{repo} has other content: {', '.join(names[:3])}{more}. Choose "
            "another name or branch, or overwrite it (--overwrite), which "
            "replaces all of it; the hub keeps earlier commits."
        )

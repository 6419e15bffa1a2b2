"""A repository on the hub: whether one may publish there, and the upload.

`huggingface_hub` does the work. Here is what it does not know: which files an
earlier publication has put into a repository, and what a user can do about an
error.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_token,
)
from huggingface_hub.utils import (
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from speechbrain_stablequant import __version__
from speechbrain_stablequant.errors import PublishError, nearest
from speechbrain_stablequant.publishing.hub_errors import (
    TOKEN_ADVICE,
    explained,
)
from speechbrain_stablequant.publishing.manifest import (
    MANIFEST,
    FileHash,
    hash_file,
    read_manifest,
)
from speechbrain_stablequant.publishing.options import PublishOptions

__all__ = ["Remote", "Upload", "check_repository", "upload"]

TIMEOUT = 20  # seconds, for the first answer of the hub
LARGEST_MANIFEST = 1 << 26  # bytes; a larger file is none of ours
_HUB_FILES = {".gitattributes"}  # the hub makes it, and needs it


@dataclass(frozen=True)
class Remote:
    """What is at a destination now.

    Arguments
    ---------
    url : str
        Page of the repository.
    state : str
        ``"absent"``, ``"empty"`` (also a branch that has nothing of its own
        yet), ``"ours"`` (an earlier publication) or ``"other"``.
    private : bool, optional
        Whether only its owner may see it; None if it does not exist.
    commit : str, optional
        Head of the branch, or of ``main`` if the branch does not exist.
    has_branch : bool
        Whether the branch exists.
    files : mapping of str to str
        Hash of each file on the branch.
    published : mapping of str to FileHash, optional
        The manifest of the earlier publication, if there is one.
    """

    url: str
    state: str = "absent"
    private: Optional[bool] = None
    commit: Optional[str] = None
    has_branch: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    published: Optional[Mapping[str, FileHash]] = None


@dataclass(frozen=True)
class Upload:
    """What an upload has done.

    Arguments
    ---------
    url : str
        Page of the commit; of the earlier one if nothing has changed.
    repo_url : str
        Page of the repository.
    added : list of str
        Files that are new or changed.
    deleted : list of str
        Files that were deleted.
    unchanged : list of str
        Files that were there already.
    num_bytes : int
        Size of the files that are new or changed.
    """

    url: str
    repo_url: str
    added: list[str]
    deleted: list[str]
    unchanged: list[str]
    num_bytes: int

    def summary(self) -> str:
        """Return what was done, in a line."""
        if not self.added and not self.deleted:
            return f"Nothing has changed since {self.url}"
        deleted = f", {len(self.deleted)} deleted" if self.deleted else ""
        return (
            f"{len(self.added)} files ({self.num_bytes:,} bytes) new or "
            f"changed{deleted}, {len(self.unchanged)} unchanged: {self.url}"
        )


def upload(
    folder: Path, options: PublishOptions, token: Optional[str] = None
) -> Upload:
    """Upload a folder to a repository, in one commit or not at all.

    Of the files that are there it deletes and replaces only those that an
    earlier publication has put there, and that nobody has edited since.

    Arguments
    ---------
    folder : Path
        A folder that was made by publishing, with its manifest.
    options : PublishOptions
        Where to; a repository or branch that does not exist is made.
    token : str, optional
        By default what ``HF_TOKEN`` or ``hf auth login`` has.

    Returns
    -------
    Upload

    Raises
    ------
    PublishError
        If it may not be done, or was not done.
    """
    folder = Path(folder)
    manifest = folder / MANIFEST
    hashes = (
        read_manifest(manifest.read_bytes()) if manifest.is_file() else None
    )
    if not hashes:
        raise PublishError(f"There are no files to publish in {folder}.")
    hashes[MANIFEST] = hash_file(manifest)
    remote = check_repository(options, token)
    added, deleted = _changes(hashes, remote, options)
    operations = [
        *(CommitOperationDelete(name) for name in deleted),
        *(CommitOperationAdd(name, str(folder / name)) for name in added),
    ]
    return Upload(
        url=_commit(_client(token), remote, operations, options),
        repo_url=remote.url,
        added=added,
        deleted=deleted,
        unchanged=sorted(set(hashes) - set(added)),
        num_bytes=sum(hashes[name].num_bytes for name in added),
    )


def _client(token: Optional[str]) -> HfApi:
    return HfApi(
        token=token or get_token(),
        library_name="speechbrain_stablequant",
        library_version=__version__,
    )


def _changes(
    hashes: Mapping[str, FileHash], remote: Remote, options: PublishOptions
) -> tuple[list[str], list[str]]:
    """Return the names of files to add and of those to delete."""
    there = {n: h for n, h in remote.files.items() if n not in _HUB_FILES}
    added = sorted(n for n, h in hashes.items() if not h.matches(there.get(n)))
    gone = sorted(n for n in there if n not in hashes)
    if options.overwrite or remote.state == "empty":
        # A new branch begins with the files of main, which are not its own.
        return added, gone
    published = remote.published or {}
    deleted = [name for name in gone if name in published]
    edited = [
        name
        for name in sorted({*added, *deleted} & set(there) - {MANIFEST})
        if name not in published or not published[name].matches(there[name])
    ]
    if edited:
        raise PublishError(
            f"{options.repo}: {', '.join(edited)} was edited or added there "
            "since the last publication. Take that over into the experiment, "
            "or overwrite it (--overwrite); the hub keeps earlier commits."
        )
    return added, deleted


def _commit(
    api: HfApi, remote: Remote, operations: list, options: PublishOptions
) -> str:
    """Make what is missing, commit, and return the address of the commit."""
    repo, branch, parent = options.repo, options.revision, remote.commit
    has_branch, made = remote.has_branch, ""
    try:
        with explained(repo):
            if remote.state == "absent":
                api.create_repo(repo, private=options.private)
                made = (
                    f" The repository {remote.url} was made, and may be empty."
                )
                parent = api.model_info(repo).sha
                has_branch = branch in (None, "main")
            if not has_branch:
                api.create_branch(repo, branch=branch, revision=parent)
                made += (
                    f" The branch '{branch}' was made, and may be as main is."
                )
            if not operations:
                return f"{remote.url}/commit/{parent}"
            # Not upload_folder: that may split an upload into several commits.
            commit = api.create_commit(
                repo,
                operations=operations,
                commit_message=options.message or "Publish a quantized model",
                revision=branch,
                parent_commit=parent,  # else another's commit would be lost
            )
    except PublishError as err:
        raise PublishError(f"{err}{made}") from err
    return str(commit.commit_url)


# -- whether one may publish there -------------------------------------------


def check_repository(
    options: PublishOptions, token: Optional[str] = None
) -> Remote:
    """Find out whether one may publish there, before anything takes long.

    Arguments
    ---------
    options : PublishOptions
        Where to.
    token : str, optional
        By default what ``HF_TOKEN`` or ``hf auth login`` has.

    Returns
    -------
    Remote
        What is there now.

    Raises
    ------
    PublishError
        If the hub cannot be reached, the token is missing or may not write
        there, or something else is there already.
    """
    repo = options.repo
    api = _client(token)
    if api.token is None:
        raise PublishError(f"There is no token for the hub. {TOKEN_ADVICE}")
    remote = Remote(f"{api.endpoint}/{repo}")
    with explained(repo):
        main = _info(api, repo)
        account = api.whoami()
    _check_account(account, repo)
    if main is None:
        return remote
    with explained(repo):
        remote = _remote(api, options, main, remote.url)
    _check_remote(remote, options)
    return remote


def _check_account(account: dict[str, Any], repo: str) -> None:
    """Refuse a token that may not write to the namespace of a repository.

    `HfApi.auth_check` tells nothing of a repository that does not exist yet.
    """
    user, namespace = str(account.get("name")), repo.split("/")[0]
    token = (account.get("auth") or {}).get("accessToken") or {}
    roles = {user: "admin"}
    for org in account.get("orgs") or []:
        roles[str(org.get("name"))] = org.get("roleInOrg")
    scoped = (token.get("fineGrained") or {}).get("scoped")
    writes = [
        str((scope.get("entity") or {}).get("name"))
        for scope in scoped or []
        if {"repo.write", "repo.content.write"}
        & {*(scope.get("permissions") or ())}
    ]
    roles.update((name.split("/")[0], "write") for name in writes)
    if token.get("role") == "read" or (scoped is not None and not writes):
        raise PublishError(
            f"{repo}: The token of {user} may only read. {TOKEN_ADVICE}"
        )
    role = {n.lower(): r for n, r in roles.items()}.get(namespace.lower(), "")
    if role == "":
        raise PublishError(
            f"{repo}: The token of {user} may not write to '{namespace}', "
            "which is neither that user nor one of their organizations."
            + nearest(namespace, roles)
        )
    if role == "read":
        raise PublishError(
            f"{repo}: {user} may only read in '{namespace}'. Ask an "
            "administrator of that organization for the role 'write'."
        )


def _info(api: HfApi, repo: str, branch: Optional[str] = None) -> Any:
    """Return what the hub knows of a branch; None if it does not exist."""
    try:
        return api.model_info(
            repo, revision=branch, timeout=TIMEOUT, files_metadata=True
        )
    except RevisionNotFoundError:
        return None
    except RepositoryNotFoundError as err:
        # Also raised for one that is gated or disabled for this token: 403.
        if err.response.status_code == 403:
            raise
        return None


def _remote(api: HfApi, options: PublishOptions, main: Any, url: str) -> Remote:
    repo, branch = options.repo, options.revision
    info = main
    if branch not in (None, "main"):
        info = _info(api, repo, branch)
    has_branch = info is not None
    info = info or main
    files = {  # hubs name small files by another hash than large ones
        s.rfilename: s.lfs["sha256"] if s.lfs else s.blob_id
        for s in info.siblings or []
    }
    state, published = "empty", None
    its_own = branch in (None, "main") or info.sha != main.sha
    if its_own and set(files) - _HUB_FILES:
        published = _published(api, repo, info)
        state = "other" if published is None else "ours"
    return Remote(
        url, state, info.private, info.sha, has_branch, files, published
    )


def _published(api: HfApi, repo: str, info: Any) -> Optional[dict]:
    """Return what the manifest on a branch lists; None if there is none."""
    sizes = {s.rfilename: s.size or 0 for s in info.siblings}
    if sizes.get(MANIFEST, LARGEST_MANIFEST) >= LARGEST_MANIFEST:
        return None
    with tempfile.TemporaryDirectory() as cache:
        path = api.hf_hub_download(
            repo, MANIFEST, revision=info.sha, cache_dir=cache
        )
        return read_manifest(Path(path).read_bytes())


def _check_remote(remote: Remote, options: PublishOptions) -> None:
    repo, private = options.repo, options.private
    if private is not None and private != remote.private:
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
    if remote.state == "other" and not options.overwrite:
        names = sorted(set(remote.files) - _HUB_FILES)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise PublishError(
            f"{repo} has other content: {', '.join(names[:3])}{more}. Choose "
            "another name or branch, or overwrite it (--overwrite), which "
            "replaces all of it; the hub keeps earlier commits."
        )

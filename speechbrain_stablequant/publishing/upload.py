"""Upload a publication to a model hub, in one commit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from speechbrain_stablequant.errors import PublishError
from speechbrain_stablequant.publishing.destination import (
    HUB_FILES,
    Destination,
    Remote,
    check_destination,
    connect,
    progress_bars,
)
from speechbrain_stablequant.publishing.hub_errors import explained
from speechbrain_stablequant.publishing.manifest import (
    MANIFEST,
    FileHash,
    hash_bytes,
    hash_files,
    manifest_bytes,
)

__all__ = ["Destination", "Upload", "check_destination", "upload"]


@dataclass(frozen=True)
class Upload:
    """What an upload has done.

    Arguments
    ---------
    url : str
        Page of the commit; of the earlier one where nothing has changed.
    repo_url : str
        Page of the repository.
    added : tuple of str
        Files that are new or changed.
    deleted : tuple of str
        Files that are no longer there.
    unchanged : tuple of str
        Files that were there already.
    num_bytes : int
        Size of the files that are new or changed.
    """

    url: str
    repo_url: str
    added: tuple[str, ...]
    deleted: tuple[str, ...]
    unchanged: tuple[str, ...]
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
    folder: Union[str, Path],
    files: Sequence[str],
    destination: Destination,
    message: str = "Publish a quantized model",
    progress: bool = True,
) -> Upload:
    """Upload files to a repository, in one commit or not at all.

    A list of the files with their hashes, ``publication.json``, goes with
    them: the next upload deletes what is no longer there, but never what
    others have put there, and does not replace what they have edited.

    Arguments
    ---------
    folder : str or Path
        Where the files are.
    files : sequence of str
        Their names, relative to the folder.
    destination : Destination
        Where to; a repository or branch that is not there is made.
    message : str
        Message of the commit.
    progress : bool
        Whether to show progress bars.

    Returns
    -------
    Upload
        The address, and what was done.

    Raises
    ------
    PublishError
        If it may not be done, or was not done.
    """
    hashes = hash_files(folder, files)
    if not hashes:
        raise PublishError(f"There are no files to publish from {folder}.")
    manifest = manifest_bytes(hashes)
    hashes[MANIFEST] = hash_bytes(manifest)
    with progress_bars(progress):
        remote = check_destination(destination)
        added, deleted = _changes(hashes, remote, destination)
        operations = [
            *(CommitOperationDelete(name) for name in deleted),
            *(_addition(Path(folder), name, manifest) for name in added),
        ]
        url = _publish(destination, remote, operations, message)
    return Upload(
        url=url,
        repo_url=remote.url,
        added=tuple(added),
        deleted=tuple(deleted),
        unchanged=tuple(sorted(set(hashes) - set(added))),
        num_bytes=sum(hashes[name].num_bytes for name in added),
    )


def _addition(folder: Path, name: str, manifest: bytes) -> CommitOperationAdd:
    content = manifest if name == MANIFEST else str(folder / name)
    return CommitOperationAdd(name, content)


def _changes(
    hashes: Mapping[str, FileHash], remote: Remote, destination: Destination
) -> tuple[list[str], list[str]]:
    """Return the names of files to add and of those to delete."""
    there = {n: h for n, h in remote.files.items() if n not in HUB_FILES}
    added = [n for n, h in hashes.items() if not h.matches(there.get(n))]
    gone = [n for n in there if n not in hashes]
    if destination.overwrite or remote.state == "empty":
        # A new branch begins with the files of main, which are not its own.
        return sorted(added), sorted(gone)
    published = remote.published
    if published is None:  # put there by hand: what is whose is not known
        return sorted(added), []
    deleted = [n for n in gone if n in published]
    touched = [n for n in (*added, *deleted) if n in there and n != MANIFEST]
    edited = [
        name
        for name in touched
        if name not in published or not published[name].matches(there[name])
    ]
    if edited:
        raise PublishError(
            f"{destination.repo}: {', '.join(sorted(edited))} was edited or "
            "added there since the last publication. Take that over into the "
            "folder, or overwrite it (--overwrite); the hub keeps earlier "
            "commits."
        )
    return sorted(added), sorted(deleted)


def _publish(
    destination: Destination, remote: Remote, operations: list, message: str
) -> str:
    """Make what is missing, commit, and return the address of the commit."""
    api = connect(destination)
    made: list[str] = []
    try:
        with explained(destination.repo):
            parent = _prepare(api, destination, remote, made)
            if not operations:
                return f"{remote.url}/commit/{parent}"
            commit = api.create_commit(
                destination.repo,
                operations=operations,
                commit_message=message,
                revision=destination.revision,
                parent_commit=parent,
            )
    except PublishError as err:
        raise PublishError(" ".join([str(err), *made])) from err
    return str(commit.commit_url)


def _prepare(
    api: HfApi, destination: Destination, remote: Remote, made: list[str]
) -> Optional[str]:
    """Make the repository and the branch, if need be; return its head."""
    repo, branch, parent = destination.repo, destination.revision, remote.commit
    missing = not remote.has_branch
    if remote.state == "absent":
        private = destination.private
        api.create_repo(
            repo, **({} if private is None else {"private": private})
        )
        made.append(f"The repository {remote.url} was made, and may be empty.")
        parent = api.model_info(repo).sha
        missing = branch not in (None, "main")
    if missing:
        api.create_branch(repo, branch=branch, revision=parent)
        made.append(f"The branch '{branch}' was made, and may be as main is.")
    return parent

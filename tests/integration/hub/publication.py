"""A small publication, and what of it is on a hub."""

from pathlib import Path

from speechbrain_stablequant.publishing.manifest import (
    MANIFEST,
    FileHash,
    read_manifest,
)
from tests.integration.hub.repositories import ATTRIBUTES, content_hash

NAME = "ann/tiny"
FILES = {
    "README.md": b"---\nlicense: apache-2.0\n---\n# A model\n",
    "hyperparams.yaml": b"model: 1\n",
    "plan.json": b'{"format": "speechbrain_stablequant.plan"}',
    "model.ckpt": b"\0weights" * 5000,
    "wav2vec2.ckpt": b"\0encoder" * 6000,
    "plots/front.png": b"\x89PNG\0",
}
LARGE = ("model.ckpt", "wav2vec2.ckpt", "plots/front.png")


def write(folder: Path, files: dict) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def state(hub, branch="main", name=NAME) -> dict:
    """Return what is on the hub, without what we and it add."""
    files = hub.repos[name].files(branch)
    assert files.pop(".gitattributes") == ATTRIBUTES
    files.pop(MANIFEST, None)
    return files


def listed(hub) -> dict:
    return read_manifest(hub.repos[NAME].files()[MANIFEST])


def hashes(files: dict) -> dict:
    return {
        name: FileHash(
            content_hash(content, True),
            content_hash(content, False),
            len(content),
        )
        for name, content in files.items()
    }


def commits(hub, name=NAME) -> list:
    return list(hub.repos[name].messages.values())

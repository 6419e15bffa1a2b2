"""What a hub keeps: accounts, and repositories with commits and blobs."""

import fnmatch
import hashlib
import json
from dataclasses import dataclass, field
from typing import Optional

LFS_PATTERNS = ("*.ckpt", "*.safetensors", "*.bin", "*.png")
ATTRIBUTES = "".join(f"{p} filter=lfs\n" for p in LFS_PATTERNS).encode()
TOKENS = {  # what whoami says of each
    "hf_write": {"role": "write"},
    "hf_read": {"role": "read"},
    "hf_fine": {
        "role": "fineGrained",
        "fineGrained": {
            "scoped": [
                {
                    "entity": {"type": "user", "name": "ann"},
                    "permissions": ["repo.content.read", "repo.write"],
                }
            ]
        },
    },
    "hf_fine_read": {
        "role": "fineGrained",
        "fineGrained": {
            "scoped": [
                {
                    "entity": {"type": "user", "name": "ann"},
                    "permissions": ["repo.content.read"],
                }
            ]
        },
    },
}
ORGS = {"lab": "write", "club": "read"}


@dataclass
class Repository:
    """Commits by id (what each file's content is), and where branches are."""

    private: bool = False
    commits: dict = field(default_factory=dict)
    branches: dict = field(default_factory=dict)
    messages: dict = field(default_factory=dict)
    blobs: dict = field(default_factory=dict)  # large files, by SHA-256

    def commit(self, branch: str, files: dict, message: str) -> str:
        head = str(self.branches.get(branch))
        seed = json.dumps([head, message, sorted(files), len(self.commits)])
        oid = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[oid] = dict(files)
        self.messages[oid] = message
        self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> Optional[str]:
        oid = self.branches.get(revision, revision)
        return oid if oid in self.commits else None

    def files(self, branch: str = "main") -> dict:
        """Return the contents of a branch by name."""
        return dict(self.commits[self.branches[branch]])


def is_large(path: str, data: bytes) -> bool:
    return b"\0" in data or any(
        fnmatch.fnmatch(path, pattern) for pattern in LFS_PATTERNS
    )


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def content_hash(content: bytes, large: bool) -> str:
    """Return the hash by which a hub names a content."""
    return hashlib.sha256(content).hexdigest() if large else git_sha1(content)

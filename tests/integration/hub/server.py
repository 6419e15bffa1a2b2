"""A small model hub: what huggingface_hub speaks with, in memory.

It listens on 127.0.0.1 only and can be told to fail. Blobs of a repository
are there once they are sent; a commit shows files all at once or not at all.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Optional
from urllib.parse import parse_qs, unquote, urlsplit

from tests.integration.hub.repositories import (
    ATTRIBUTES,
    ORGS,
    TOKENS,
    Repository,
    content_hash,
    git_sha1,
    is_large,
)


@dataclass
class Failures:
    """What to do wrong, and how often; -1: always.

    ``status`` has HTTP codes by the step that answers with them: ``info``,
    ``whoami``, ``create``, ``branch``, ``preupload``, ``batch``, ``put``,
    ``verify``, ``commit``. ``drop`` breaks connections in the middle of it.
    """

    status: dict = field(default_factory=dict)
    drop: dict = field(default_factory=dict)
    seconds: dict = field(default_factory=dict)  # how long a step takes
    moved: bool = False  # someone commits between preupload and commit
    lost: bool = False  # the answer to a commit does not arrive


class Hub:
    """The server; use it as a context manager.

    Attributes
    ----------
    repos : dict
        Repositories by name.
    sent : list of (str, str)
        What was asked of it: the step and, of a ``put``, the SHA-256.
    """

    def __init__(self):
        self.reset()
        self.connections = set()
        self.port = 0
        self._bind()
        self.url = f"http://127.0.0.1:{self.port}"

    def _bind(self):
        handler = type("Bound", (Handler,), {"hub": self})
        address = ("127.0.0.1", self.port)
        self.server = ThreadingHTTPServer(address, handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]

    @contextlib.contextmanager
    def down(self):
        """Refuse connections for a while."""
        self.__exit__()
        for connection in list(self.connections):
            connection.shutdown(socket.SHUT_RDWR)
        try:
            yield
        finally:
            self._bind()
            self.__enter__()

    def reset(self):
        self.lock = threading.Lock()
        self.repos: dict[str, Repository] = {}
        self.sent: list[tuple[str, str]] = []
        self.failures = Failures()

    def add(self, name: str, files: Optional[dict] = None, private=False):
        """Make a repository; with files, a second commit has them."""
        repo = self.repos[name] = Repository(private)
        first = {".gitattributes": ATTRIBUTES}
        repo.commit("main", first, "initial commit")
        if files:
            repo.commit("main", {**first, **files}, "by hand")
        return repo

    def puts(self) -> list:
        return [what for step, what in self.sent if step == "put"]

    def steps(self) -> list:
        return [step for step, _ in self.sent]

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one packet, which does not wait for the next
    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", "branch"),
        ("POST", r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", "preupload"),
        ("POST", r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", "commit"),
        ("GET", r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", "info"),
        ("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", "tree"),
        ("GET", r"/api/models/([^/]+/[^/]+)", "info"),
        ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/([^/]+/[^/]+)/(\w+)", "put"),
        ("POST", r"/lfs/([^/]+/[^/]+)/verify", "verify"),
        ("GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
        ("HEAD", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
    )
    # By a signed address, or for all
    PUBLIC = ("put", "resolve", "info", "tree")

    def setup(self):
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self):
        self.hub.connections.discard(self.connection)
        super().finish()

    def log_message(self, *_):
        pass

    def _serve(self):
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        for method, pattern, step in self.ROUTES:
            match = re.fullmatch(pattern, url.path)
            if match and method == self.command:
                return self._step(step, [unquote(g) for g in match.groups()])
        return self._refuse(404, "no such address")

    do_GET = do_POST = do_PUT = do_HEAD = _serve

    def _step(self, step, groups):
        failures = self.hub.failures
        time.sleep(failures.seconds.get(step, 0))
        if failures is not self.hub.failures:  # the test is over
            return self._drop()
        if self._due(failures.drop, step):
            self.rfile.read(min(100, self._length()))
            return self._drop()
        data = self._body()
        self.hub.sent.append((step, groups[-1] if step == "put" else ""))
        if step in failures.status:
            return self._refuse(failures.status[step], "told to fail")
        token = self.headers.get("Authorization", "").partition(" ")[2]
        if step not in self.PUBLIC and token not in TOKENS:
            return self._refuse(401, "Invalid username or password.")
        with self.hub.lock:
            getattr(self, f"on_{step}")(data, *groups)

    def _drop(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _due(self, counts, step) -> bool:
        left = counts.get(step, 0)
        if left > 0:
            counts[step] = left - 1
        return left != 0

    def _length(self) -> int:
        return int(self.headers.get("Content-Length") or 0)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(self._length())
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    # -- answers --------------------------------------------------------------

    def _answer(self, data, status=200, **headers):
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status, message, code=None):
        headers = {"X_Error_Message": message}
        if code:
            headers["X_Error_Code"] = code
        self._answer({"error": message}, status, **headers)

    def _repo(self, name) -> Optional[Repository]:
        repo = self.hub.repos.get(name)
        seen = repo and (not repo.private or "Authorization" in self.headers)
        if not seen:
            self._refuse(404, "Repository not found", "RepoNotFound")
            return None
        return repo

    # -- steps ----------------------------------------------------------------

    def on_whoami(self, data):
        token = self.headers["Authorization"].partition(" ")[2]
        orgs = [{"name": n, "roleInOrg": r} for n, r in ORGS.items()]
        auth = {"type": "access_token", "accessToken": TOKENS[token]}
        self._answer(
            {"type": "user", "name": "ann", "orgs": orgs, "auth": auth}
        )

    def on_create(self, data):
        asked = json.loads(data)
        name = f"{asked.get('organization') or 'ann'}/{asked['name']}"
        if name in self.hub.repos:
            return self._refuse(409, "You already created this repo")
        private = asked.get("visibility") == "private" or asked.get("private")
        self.hub.add(name, private=bool(private))
        self._answer({"url": f"{self.hub.url}/{name}", "name": name})

    def on_validate(self, data):
        content = json.loads(data)["content"]
        wrong = "license: [" in content
        errors = [{"message": '"license" must be one of ...'}] if wrong else []
        self._answer({"errors": errors, "warnings": []}, 400 if wrong else 200)

    def on_branch(self, data, name, branch):
        repo = self._repo(name)
        if repo is None:
            return
        if branch in repo.branches:
            return self._refuse(409, "Reference already exists")
        start = json.loads(data).get("startingPoint", "main")
        repo.branches[branch] = repo.resolve(start)
        self._answer({})

    def on_info(self, data, name, revision="main"):
        repo = self._repo(name)
        if repo is None:
            return
        oid = repo.resolve(revision)
        if oid is None:
            return self._refuse(404, "Invalid rev", "RevisionNotFound")
        siblings = [
            self._sibling(path, content)
            for path, content in repo.commits[oid].items()
        ]
        answer = {"_id": "0", "id": name, "modelId": name, "sha": oid}
        counts = {"downloads": 0, "likes": 0, "tags": []}
        shown = {"private": repo.private, "siblings": siblings}
        self._answer({**answer, **counts, **shown})

    def on_tree(self, data, name, revision):
        repo = self._repo(name)
        if repo is None:
            return
        files = repo.commits[repo.resolve(revision)]
        rows = [
            {"type": "file", "path": p, "size": len(c), "oid": git_sha1(c)}
            for p, c in files.items()
        ]
        self._answer(rows)

    def _sibling(self, path, content):
        item = {"rfilename": path}
        if "blobs" not in self.query:
            return item
        item.update(size=len(content), blobId=git_sha1(content))
        if is_large(path, content):
            sha256 = hashlib.sha256(content).hexdigest()
            item["blobId"] = git_sha1(f"pointer to {sha256}".encode())
            item["lfs"] = {
                "sha256": sha256,
                "size": len(content),
                "pointerSize": 134,
            }
        return item

    def on_preupload(self, data, name, revision):
        repo = self._repo(name)
        if repo is None:
            return
        now = repo.files(revision)
        files = []
        for item in json.loads(data)["files"]:
            path, sample = item["path"], base64.b64decode(item["sample"])
            large = is_large(path, sample)
            files.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": content_hash(now[path], large)
                    if path in now
                    else None,
                }
            )
        self._answer({"files": files})

    def on_batch(self, data, name):
        repo = self._repo(name)
        if repo is None:
            return
        objects = []
        for item in json.loads(data)["objects"]:
            if item["oid"] not in repo.blobs:
                base = f"{self.hub.url}/lfs/{name}"
                item["actions"] = {
                    "upload": {"href": f"{base}/{item['oid']}"},
                    "verify": {"href": f"{base}/verify"},
                }
            objects.append(item)
        self._answer({"transfer": "basic", "objects": objects})

    def on_put(self, data, name, oid):
        if hashlib.sha256(data).hexdigest() != oid:
            return self._refuse(400, "wrong content")
        self.hub.repos[name].blobs[oid] = data
        self._answer({})

    def on_verify(self, data, name):
        item = json.loads(data)
        there = self.hub.repos[name].blobs.get(item["oid"])
        if there is None or len(there) != item["size"]:
            return self._refuse(404, "not there")
        self._answer({})

    def on_commit(self, data, name, branch):
        repo = self._repo(name)
        if repo is None:
            return
        if self.hub.failures.moved:
            other = {**repo.files(branch), "other.txt": b"someone else's"}
            repo.commit(branch, other, "by someone else")
        rows = [json.loads(row) for row in data.splitlines()]
        header = rows.pop(0)["value"]
        parent = header.get("parentCommit")
        if parent is not None and parent != repo.branches[branch]:
            return self._refuse(412, "A commit has happened since")
        files = repo.files(branch)
        for row in rows:
            if not self._apply(row["key"], row["value"], files, repo):
                return self._refuse(400, f"cannot {row['key']}")
        oid = repo.commit(branch, files, header["summary"])
        if self.hub.failures.lost:
            return self._drop()
        url = f"{self.hub.url}/{name}/commit/{oid}"
        self._answer({"success": True, "commitOid": oid, "commitUrl": url})

    def _apply(self, key, value, files, repo) -> bool:
        path = value["path"]
        if key == "deletedFile":
            return files.pop(path, None) is not None
        if key == "file":
            files[path] = base64.b64decode(value["content"])
        elif key == "lfsFile" and value["oid"] in repo.blobs:
            files[path] = repo.blobs[value["oid"]]
        else:
            return False
        return True

    def on_resolve(self, data, name, revision, path):
        repo = self._repo(name)
        if repo is None:
            return
        oid = repo.resolve(revision)
        if oid is None:
            return self._refuse(404, "Invalid rev", "RevisionNotFound")
        content = repo.commits[oid].get(path)
        if content is None:
            return self._refuse(404, "Entry not found", "EntryNotFound")
        etag = content_hash(content, is_large(path, content))
        self._answer(content, ETag=f'"{etag}"', X_Repo_Commit=oid)

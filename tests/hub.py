"""A server on this machine that does what huggingface_hub asks of the Hugging Face Hub, for models alone.

Paths, headers and error codes are those that huggingface_hub reads and writes: repositories with commits, downloads by
redirect to another address for files in LFS, uploads through LFS's batch interface, commits as NDJSON.
"""

import base64
import contextlib
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


def sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def in_lfs(path: str) -> bool:
    return path.endswith(".safetensors")


@dataclass
class Repository:
    """Commits from old to new, each with all files; names of revisions; who may see it."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    messages: list[str] = field(default_factory=list)

    def commit(self, changes: dict[str, bytes], message: str = "by hand") -> str:
        """Add a commit to main; return its name."""
        files = {**self.files, **changes}
        names = json.dumps([len(self.commits), message, *sorted(files)])
        name = hashlib.sha1(names.encode()).hexdigest()
        self.commits[name] = files
        self.refs["main"] = name
        self.messages.append(message)
        return name

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits.get(self.refs.get("main", ""), {})


class Refusal(Exception):
    """An error of the Hub: status, X-Error-Code, message."""


class Hub:
    """Repositories by name, accounts by token, the address, and what was requested.

    Each token is for one account, which may write to repositories of its own.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.accounts = {"hf_me": "me", "hf_other": "other"}
        self.uploads: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.failures: dict[str, tuple[int, str]] = {}  # by a part of "METHOD path": status and message
        self.sizes: dict[str, int] = {}  # that are claimed, by file
        self.url = ""
        self.storage = ""  # the same server by another name, as the Hub's large files are on another host

    def create(self, name: str, files: dict[str, bytes] | None = None, **options: bool) -> Repository:
        """Make a repository."""
        repository = self.repositories[name] = Repository(**options)
        repository.commit({".gitattributes": b"*.safetensors filter=lfs\n", **(files or {})})
        return repository

    def find(self, name: str, account: str | None, write: bool = False) -> Repository:
        """Return a repository that the account may see."""
        found, owner = self.repositories.get(name), name.partition("/")[0]
        if found is None or (found.private and account != owner):
            raise Refusal(404 if account else 401, "RepoNotFound", "Repository not found")
        if write and account != owner:
            raise Refusal(403, None, "You don't have the rights to write here")
        return found


def api(hub: Hub, method: str, path: str, body: bytes, account: str | None) -> dict[str, Any]:
    """Return the JSON of a call of the Hub's interface."""
    if path == "/api/validate-yaml":
        text = json.loads(body)["content"]
        if "license: no-such" in text:
            raise Refusal(400, None, {"errors": [{"message": '"license" must be one of [apache-2.0, mit]'}]})
        return {"errors": [], "warnings": []}
    if path == "/api/repos/create":
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] != account:
            raise Refusal(403, None, f"You don't have the rights to create a model under {wanted['organization']}")
        if name in hub.repositories:
            raise Refusal(409, None, "You already created this model repo")
        hub.create(name, private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        return {"url": f"{hub.url}/{name}"}
    if found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
        hub.find(found[1], account, write=True)
        return {"transfer": "basic", "objects": [lfs_action(hub, each) for each in json.loads(body)["objects"]]}
    if path == "/api/agent-harnesses":  # which huggingface_hub asks for its own statistics
        raise Refusal(404, None, "Not here")
    found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|preupload|commit)/([^/]+))?", path)
    assert found, f"{method} {path} is not implemented"
    name, action = found[1], found[2]
    repository = hub.find(name, account, write=action in ("preupload", "commit"))
    if action == "preupload":
        return {"files": [preupload(repository, file["path"]) for file in json.loads(body)["files"]]}
    if action == "commit":
        commit = new_commit(hub, repository, [json.loads(line) for line in body.splitlines()])
        return {"success": True, "commitOid": commit, "commitUrl": f"{hub.url}/{name}/commit/{commit}"}
    commit = repository.refs["main"]
    files = [{"rfilename": file} for file in repository.commits[commit]]
    return {"id": name, "sha": commit, "private": repository.private, "siblings": files, "tags": []}


def lfs_action(hub: Hub, wanted: dict[str, Any]) -> dict[str, Any]:
    known = wanted["oid"] in hub.uploads
    return {**wanted, **({} if known else {"actions": {"upload": {"href": f"{hub.storage}/lfs/{wanted['oid']}"}}})}


def preupload(repository: Repository, path: str) -> dict[str, Any]:
    mode, data = "lfs" if in_lfs(path) else "regular", repository.files.get(path)
    oid = None if data is None else sha256(data) if in_lfs(path) else sha1(data)
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, **({"oid": oid} if oid else {})}


def new_commit(hub: Hub, repository: Repository, lines: list[dict[str, Any]]) -> str:
    header, *rest = [(line["key"], line["value"]) for line in lines]
    assert header[0] == "header"
    if header[1].get("parentCommit", repository.refs["main"]) != repository.refs["main"]:
        raise Refusal(412, None, "A commit has happened since. Please refresh and try again.")
    changes = {}
    for key, value in rest:
        assert key in ("file", "lfsFile")
        data = base64.b64decode(value["content"]) if key == "file" else hub.uploads[value["oid"]]
        assert (key == "lfsFile") == in_lfs(value["path"])
        changes[value["path"]] = data
    return repository.commit(changes, header[1]["summary"])


def resolve(hub: Hub, path: str, account: str | None) -> tuple[bytes | None, dict[str, str]]:
    """Return a file with its headers; None if the headers redirect."""
    found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
    assert found, f"GET {path} is not implemented"
    name, revision, file = found[1], unquote(found[2]), found[3]
    repository = hub.find(name, account)
    if repository.gated and account != name.partition("/")[0]:
        raise Refusal(403 if account else 401, "GatedRepo", "Access to model is restricted")
    commit = repository.refs.get(revision, revision)
    if commit not in repository.commits:
        raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    data = repository.commits[commit].get(file)
    if data is None:
        raise Refusal(404, "EntryNotFound", "Entry not found")
    headers = {"X-Repo-Commit": commit}
    if not in_lfs(file):
        return data, {**headers, "ETag": f'"{sha1(data)}"'}
    hub.uploads[sha256(data)] = data
    linked = {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(hub.sizes.get(file, len(data)))}
    return None, {**headers, **linked, "Location": f"{hub.storage}/lfs/{sha256(data)}"}


class Quiet(ThreadingHTTPServer):
    """Prints nothing about clients that close a connection."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serve_hub() -> Iterator[Hub]:
    """Run a server in a thread."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            self.run(lambda path, body, account: reply(api(hub, self.command, path, body, account)))

        def do_PUT(self) -> None:
            self.run(self.upload)

        def do_GET(self) -> None:
            self.run(self.download)

        do_HEAD = do_GET

        def upload(self, path: str, body: bytes, account: str | None) -> tuple[bytes, dict[str, str]]:
            assert account is None, "the token must not be sent to the storage"
            assert path == f"/lfs/{sha256(body)}"
            hub.uploads[sha256(body)] = body
            return b"", {}

        def download(self, path: str, body: bytes, account: str | None) -> tuple[bytes | None, dict[str, str]]:
            if path.startswith("/lfs/"):
                assert account is None, "the token must not be sent to the storage"
                return hub.uploads[path.removeprefix("/lfs/")], {}
            if path.startswith("/api/"):
                return reply(api(hub, self.command, path, body, account))
            return resolve(hub, path, account)

        def run(self, action: Any) -> None:
            path, body = urlsplit(self.path).path, self.body()
            line = f"{self.command} {path}"
            hub.requests.append(line)
            try:
                for part, (status, message) in hub.failures.items():
                    if part in line:
                        raise Refusal(status, None, message)
                data, headers = action(path, body, self.account())
                self.send(302 if data is None else 200, headers, data or b"")
            except Refusal as refusal:
                status, code, message = refusal.args
                document = message if isinstance(message, dict) else {"error": message}
                headers = {"Content-Type": "application/json", **({"X-Error-Code": code} if code else {})}
                if isinstance(message, str):
                    headers["X-Error-Message"] = message
                self.send(status, headers, json.dumps(document).encode())

        def account(self) -> str | None:
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if token and token not in hub.accounts:
                raise Refusal(401, None, "Invalid credentials in Authorization header")
            return hub.accounts.get(token)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def send(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    http = Quiet(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.url, hub.storage = (f"http://{host}:{http.server_address[1]}" for host in ("127.0.0.1", "localhost"))
    try:
        yield hub
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def reply(document: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    return json.dumps(document).encode(), {"Content-Type": "application/json"}

"""A hub on 127.0.0.1 for the real clients (`HF_ENDPOINT`): repositories in memory, faults on
demand, every request counted.

It speaks what huggingface_hub, transformers and datasets ask for: repository information, file
trees, path information, and `resolve` with HEAD, GET, ranges and, for large files, the redirection
to a content store.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

Files = Mapping[str, bytes]
LARGE = (
    ".safetensors",
    ".bin",
    ".h5",
    ".msgpack",
    ".onnx",
    ".parquet",
    ".model",
)  # as the hub keeps them: in a store
PIECE = 1 << 14


def sha1(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@dataclass
class Repository:
    """A model or a data set: its files by commit, and what `main` and other names point to."""

    id: str
    kind: Literal["models", "datasets"]
    commits: dict[str, Files] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # main, tags → commit
    gated: bool = False  # files need a token that is in `Hub.members`
    private: bool = False

    def add(self, files: Files, *, commit: str | None = None, name: str = "main") -> str:
        """A new commit, to which `name` then points; its id, unless given, is a digest of its
        files.
        """
        digest = sha1(
            json.dumps({path: sha1(content) for path, content in files.items()}).encode()
            + self.id.encode()
        )
        self.commits[commit or digest] = dict(files)
        self.names[name] = commit or digest
        return commit or digest

    def find(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.names.get(revision)


@dataclass
class Fault:
    """What happens to requests whose `METHOD path` matches, the first `times` of them, after `skip`
    others.
    """

    match: str
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0  # seconds before the answer
    stall: float = 0.0  # seconds in the middle of the body
    reset_after: int | None = None  # bytes of the body, then the connection is reset
    # bytes of the body, then the connection is closed as if that were all
    truncate_after: int | None = None
    times: int = 1_000_000
    skip: int = 0


class Hub:
    """The server; `with Hub() as hub:`, its address is `hub.url`."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.faults: list[Fault] = []
        # "METHOD path" of every request to the hub, without those to its content store
        self.requests: list[str] = []
        self.transfers: list[str] = []  # paths of the files whose bytes were sent
        self.members: set[str] = set()  # tokens that may read gated repositories
        self.tokens: set[str] = set()  # tokens that are known at all
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def repository(
        self, id: str, kind: Literal["models", "datasets"] = "models", **options: Any
    ) -> Repository:
        made = Repository(id, kind, **options)
        self.repositories[kind, id] = made
        return made

    def clear(self) -> None:
        """No faults, and nothing counted."""
        with self.lock:
            self.faults, self.requests, self.transfers = [], [], []

    def count(self, match: str = "") -> int:
        """Requests so far whose `METHOD path` matches."""
        with self.lock:
            return sum(re.search(match, line) is not None for line in self.requests)

    def fault(self, line: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if re.search(fault.match, line) is None:
                    continue
                if fault.skip:
                    fault.skip -= 1
                elif fault.times:
                    fault.times -= 1
                    return fault
        return None


def pause(seconds: float) -> None:
    """Wait, whatever a test has put in the place of `time.sleep` for the clients."""
    threading.Event().wait(seconds)


class Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code} if code else {}
        self.headers |= {"X-Error-Message": message} if message else {}
        self.headers |= {name.replace("_", "-"): value for name, value in headers.items()}


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as the tree lists it."""
    described: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": len(content),
        "oid": sha1(content),
    }
    if path.endswith(LARGE):
        digest = hashlib.sha256(content).hexdigest()
        described["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return described


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        hub: Hub

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:  # noqa: N802 - the name that http.server calls
            self.answer()

        do_GET = do_POST = do_HEAD  # noqa: N815

        def answer(self) -> None:
            url = urlsplit(self.path)
            path = unquote(url.path)
            line = f"{self.command} {path}"
            length = int(self.headers.get("Content-Length") or 0)
            self.posted = self.rfile.read(length) if length else b""
            if not path.startswith("/store/"):
                with hub.lock:
                    hub.requests.append(line)
            self.failing = hub.fault(line)
            try:
                if self.failing is not None:
                    pause(self.failing.delay)
                    if self.failing.status is not None:
                        raise Refusal(
                            self.failing.status,
                            **{name: value for name, value in self.failing.headers.items()},
                        )
                self.route(path, {key: values[-1] for key, values in parse_qs(url.query).items()})
            except Refusal as refusal:
                self.send(
                    json.dumps({"error": str(refusal)}).encode(),
                    status=refusal.status,
                    **refusal.headers,
                )
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        # ------------------------------------------------------------------------------------------
        # -- routes

        def route(self, path: str, query: dict[str, str]) -> None:
            if path == "/api/agent-harnesses":
                return self.json({"harnesses": {}})  # the client asks for it once a day
            if match := re.fullmatch(r"/api/(models|datasets)/(.+?)/tree/([^/]+)(?:/(.*))?", path):
                return self.tree(
                    *match.groups(),
                    recursive=query.get("recursive", "false").lower() in ("true", "1"),
                )
            if match := re.fullmatch(r"/api/(models|datasets)/(.+?)/paths-info/([^/]+)", path):
                return self.paths(*match.groups())
            if match := re.fullmatch(r"/api/(models|datasets)/(.+?)(?:/revision/([^/]+))?", path):
                return self.information(*match.groups(), blobs="blobs" in query)
            if match := re.fullmatch(
                r"/(?:(datasets)/)?([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)", path
            ):
                kind, id, revision, name = match.groups()
                return self.resolve(kind or "models", id, revision, name)
            if match := re.fullmatch(r"/store/(models|datasets)/(.+)/at/(\w+)/(.+)", path):
                kind, id, commit, name = match.groups()
                return self.content(name, hub.repositories[kind, id].commits[commit][name])
            raise Refusal(404, message=f"no such page: {path}")

        def look(
            self, kind: str, id: str, revision: str | None, *, files: bool
        ) -> tuple[Repository, str]:
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if token and token not in hub.tokens | hub.members:
                raise Refusal(401, message="Invalid credentials in Authorization header")
            found = hub.repositories.get((kind, id))
            if found is None or (found.private and token not in hub.members):
                raise Refusal(404 if token else 401, "RepoNotFound", "Repository not found")
            commit = found.find(revision or "main")
            if commit is None:
                raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            if files and found.gated and token not in hub.members:
                said = f"Access to {kind[:-1]} {id} is restricted"
                known = f"{said} and you are not in the authorized list."
                unknown = f"{said}. You must have access to it and be authenticated to access it."
                raise Refusal(403 if token else 401, "GatedRepo", known if token else unknown)
            return found, commit

        def information(self, kind: str, id: str, revision: str | None, *, blobs: bool) -> None:
            found, commit = self.look(kind, id, revision, files=False)
            siblings = []
            for path, content in found.commits[commit].items():
                described = entry(path, content)
                sizes = {"blobId": described["oid"], "size": described["size"]}
                if "lfs" in described:
                    lfs = described["lfs"]
                    sizes["lfs"] = {
                        "sha256": lfs["oid"],
                        "size": lfs["size"],
                        "pointerSize": lfs["pointerSize"],
                    }
                siblings.append({"rfilename": path} | (sizes if blobs else {}))
            about = {
                "_id": sha1(id.encode())[:24],
                "id": id,
                "sha": commit,
                "siblings": siblings,
                "tags": [],
                "private": found.private,
            }
            self.json(
                about
                | {
                    "gated": "manual" if found.gated else False,
                    "disabled": False,
                    "downloads": 0,
                    "likes": 0,
                }
            )

        def tree(
            self, kind: str, id: str, revision: str, folder: str | None, *, recursive: bool
        ) -> None:
            found, commit = self.look(kind, id, revision, files=True)
            prefix = f"{folder}/" if folder else ""
            inside = {
                path: content
                for path, content in found.commits[commit].items()
                if path.startswith(prefix)
            }
            if not inside:
                raise Refusal(404, "EntryNotFound", f"{folder} does not exist on {revision}")
            listed, folders = [], set()
            for path, content in inside.items():
                parts = path[len(prefix) :].split("/")
                folders |= {
                    prefix + "/".join(parts[:depth])
                    for depth in range(1, len(parts) if recursive else min(len(parts), 2))
                }
                if recursive or len(parts) == 1:
                    listed.append(entry(path, content))
            self.json(
                [
                    {"type": "directory", "path": path, "oid": sha1(path.encode()), "size": 0}
                    for path in sorted(folders)
                ]
                + listed
            )

        def paths(self, kind: str, id: str, revision: str) -> None:
            found, commit = self.look(kind, id, revision, files=True)
            asked = (
                json.loads(self.posted)["paths"]
                if self.posted.startswith(b"{")
                else parse_qs(self.posted.decode()).get("paths", [])
            )
            files, answer = found.commits[commit], []
            for path in asked:
                if path in files:
                    answer.append(entry(path, files[path]))
                elif any(name.startswith(f"{path}/") for name in files):
                    answer.append(
                        {"type": "directory", "path": path, "oid": sha1(path.encode()), "size": 0}
                    )
            self.json(answer)

        def resolve(self, kind: str, id: str, revision: str, name: str) -> None:
            found, commit = self.look(kind, id, revision, files=True)
            content = found.commits[commit].get(name)
            here = {"X-Repo-Commit": commit}
            if content is None:
                raise Refusal(404, "EntryNotFound", "Entry not found", **here)
            described = entry(name, content)
            if "lfs" not in described:
                return self.content(name, content, ETag=f'"{described["oid"]}"', **here)
            here |= {
                "X-Linked-Etag": f'"{described["lfs"]["oid"]}"',
                "X-Linked-Size": str(len(content)),
            }
            self.send(
                b"",
                status=302,
                Location=f"http://localhost:{hub.port}/store/{kind}/{id}/at/{commit}/{name}",
                **here,
            )

        # ------------------------------------------------------------------------------------------
        # -- bodies

        def content(self, name: str, content: bytes, **headers: str) -> None:
            """A file, or the range of it that was asked for."""
            if self.command == "GET":
                with hub.lock:
                    hub.transfers.append(name)
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if asked is None:
                return self.send(
                    content,
                    **headers,
                    Accept_Ranges="bytes",
                    Content_Type="application/octet-stream",
                )
            start, end = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
            headers |= {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
            self.send(content[start : end + 1], status=206, **headers)

        def json(self, value: Any) -> None:
            self.send(json.dumps(value).encode(), Content_Type="application/json")

        def send(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            fault = self.failing
            stop = (
                None
                if fault is None
                else fault.reset_after
                if fault.reset_after is not None
                else fault.truncate_after
            )
            if fault is None or stop is None or not body:
                half = len(body) // 2 if fault is not None and fault.stall else 0
                self.wfile.write(body[:half])
                if half:
                    self.wfile.flush()
                    pause(fault.stall if fault is not None else 0)
                self.wfile.write(body[half:])
                return
            self.wfile.write(body[:stop])
            self.wfile.flush()
            self.close_connection = True
            if fault.reset_after is not None:
                pause(0.05)  # what was sent arrives before the reset
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            self.connection.close()

    return Handler

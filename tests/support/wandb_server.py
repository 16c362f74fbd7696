"""A W&B service on the loopback, for the real client (wandb 0.31), with faults on demand.

    with WandbServer() as server:
        run = server.add_run("abc123", config={"seed": 42}, summary={"epoch": 3}, files={"best.pth": data})
        subprocess.run(..., env=os.environ | server.environment(folder))
        server.runs["abc123"].history    # plain data: also config, summary, files, artifacts, state

It knows what the client asks for when it logs runs (also resumed ones), uploads files and artifacts, syncs
offline runs, lists and filters runs, and downloads. Faults: `fail`, `hang`, `fail_operations`,
`download_status`, `cut_downloads`, `hang_downloads`, `stop()`. `requests` has everything
that was sent.
"""

import contextlib
import gzip
import json
import re
import socket
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from wandb_graph import OPERATIONS
from wandb_store import Node, Store, StoredArtifact, StoredRun, md5

API_KEY = "0123456789abcdef" * 2 + "01234567"  # 40 characters, as the client demands
OPERATION = re.compile(r"\b(?:query|mutation)\s+(\w+)")


@dataclass(frozen=True)
class Request:
    """What a client sent; the body is unpacked."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str]
    operation: str = ""  # of a GraphQL request
    variables: Node = field(default_factory=dict)


class WandbServer:
    """The service. Attributes that inject faults may be set at any time."""

    def __init__(self, entity: str = "me", project: str = "hoser-distill"):
        self.entity, self.project = entity, project
        self.store = Store(entity)
        self.requests: list[Request] = []
        self.fail: int | None = None  # status for all POST requests
        self.fail_operations: dict[str, int] = {}  # status for GraphQL operations of that name
        self.hang = False  # accept requests and never answer
        self.hang_downloads = False  # the same, downloads only
        self.download_status: int | None = None  # status for all downloads
        self.cut_downloads = False  # downloads break off half-way
        self.lock = threading.RLock()
        self.stopped = threading.Event()
        self._connections: set[socket.socket] = set()
        self._http = _HttpServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_": self}))
        self.url = self.store.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "WandbServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Die: from now on connections are refused, and open ones are broken."""
        if self.stopped.is_set():
            return
        self.stopped.set()
        self._http.shutdown()
        self._http.server_close()
        with self.lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    @property
    def runs(self) -> dict[str, StoredRun]:
        """All runs by their id."""
        return {run.id: run for run in self.store.all_runs.values()}

    @property
    def artifacts(self) -> list[StoredArtifact]:
        """All versions of artifacts that were committed."""
        return [item for item in self.store.all_artifacts.values() if item.state == "COMMITTED"]

    def add_run(self, id: str, project: str | None = None, entity: str | None = None, **fields: Any) -> StoredRun:
        """A finished run; `fields` are those of `StoredRun`."""
        run = StoredRun(entity or self.entity, project or self.project, id, **{"state": "finished"} | fields)
        self.store.all_runs[run.entity, run.project, id] = run
        return run

    def add_artifact(self, run: StoredRun, name: str, files: dict[str, bytes], **fields: Any) -> StoredArtifact:
        """A committed version that `run` logged; `fields`: type (default: model), metadata, aliases."""
        artifact = self.store.add_artifact(run, name, fields.pop("type", "model"), md5(b"".join(files.values())))
        artifact.files, artifact.aliases = files, ["latest"]
        for key, value in fields.items():
            setattr(artifact, key, value)
        return artifact

    def environment(self, folder: Path) -> dict[str, str]:
        """Variables for a client that knows this server, and keeps all its files in `folder`."""
        places = {f"WANDB_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT")}
        folder.mkdir(parents=True, exist_ok=True)
        return places | {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": API_KEY,
            "WANDB_DIR": str(folder),
            "HOME": str(folder),
            "NETRC": str(folder / "netrc"),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def operations(self) -> list[str]:
        """Names of the GraphQL operations so far."""
        return [request.operation for request in self.requests if request.operation]

    @contextlib.contextmanager
    def connection(self, connection: socket.socket) -> Iterator[None]:
        with self.lock:
            self._connections.add(connection)
        try:
            yield
        finally:
            with self.lock:
                self._connections.discard(connection)

    def answer(self, request: Request, query: str) -> tuple[int, Node]:
        """Status and body for a GraphQL request."""
        if re.search(r"__type\s*\(", query):  # what can you do? nothing that is new
            names = re.findall(r"(\w+)\s*:\s*__type", query) or ["__type"]
            return 200, {"data": {name: {"fields": [], "inputFields": [], "enumValues": []} for name in names}}
        handle = OPERATIONS.get(request.operation)
        if handle is None:
            return 200, {"data": None, "errors": [{"message": f"unknown operation {request.operation}"}]}
        try:
            return 200, {"data": handle(self.store, request.variables)}
        except (LookupError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
            # So that the test shows a mistake in here, instead of a client that retries for minutes.
            return 200, {"data": None, "errors": [{"message": f"{type(error).__name__}: {error}"}]}

    def stream(self, path: str, content: Node) -> None:
        """A part of history, summary, system metrics of a run, at /files/{entity}/{project}/{run}/file_stream."""
        entity, project, name = (urllib.parse.unquote(part) for part in path.split("/")[2:5])
        run = self.store.all_runs[entity, project, name]
        rows_of = {"wandb-history.jsonl": run.history, "wandb-events.jsonl": run.events}
        for file, chunk in (content.get("files") or {}).items():
            rows, offset = chunk["content"], chunk.get("offset") or 0
            if file in rows_of:
                rows_of[file][offset : offset + len(rows)] = [json.loads(row) for row in rows]
            elif file == "wandb-summary.json":
                run.summary.update(json.loads(rows[-1]))
        if content.get("complete"):
            run.state = "failed" if content.get("exitcode") else "finished"

    def find_file(self, path: str) -> tuple[dict[str, bytes] | None, str]:
        """The files among which that of a URL is or will be, and its name there."""
        kind, *parts = (urllib.parse.unquote(part) for part in path.strip("/").split("/"))
        artifact = self.store.all_artifacts.get(parts[0]) if parts else None
        if kind == "run-files" and len(parts) == 4:
            run = self.store.all_runs.get((parts[0], parts[1], parts[2]))
            return (run.files if run else None), parts[3]
        if kind == "artifact-files" and artifact and len(parts) == 2:
            return artifact.files, parts[1]
        if kind == "manifest" and artifact:
            return artifact.manifest, "wandb_manifest.json"
        return None, ""


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        # The client drops idle connections, and so do we when we stop.
        if not isinstance(sys.exc_info()[1], ConnectionError | ValueError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_: WandbServer

    def handle(self) -> None:
        with self.server_.connection(self.connection):
            super().handle()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._record(b"")
        files, name = self.server_.find_file(self._path)
        if not self._is_download:
            self._reply(200, b"{}")  # is anybody there?
        elif self.server_.download_status or files is None or name not in files:
            self._reply(self.server_.download_status or 404, b'{"error": "not here"}')
        else:
            self._send_file(files[name])

    def do_PUT(self) -> None:
        body = self._body()
        self._record(body)
        files, name = self.server_.find_file(self._path)
        if files is not None:
            files[name] = body
        self._reply(404 if files is None else 200, b"{}")

    def do_POST(self) -> None:
        server, body = self.server_, self._body()
        if self._path != "/graphql":
            self._record(body)
            if self._fails(server.fail):
                return
            with server.lock:
                if self._path.endswith("/file_stream"):
                    server.stream(self._path, json.loads(body))
            self._reply(200, b'{"limits": {}}')
            return
        content = json.loads(body)
        match = OPERATION.search(content["query"])
        request = self._record(body, match[1] if match else "", content.get("variables") or {})
        if self._fails(server.fail or server.fail_operations.get(request.operation)):
            return
        if "Basic" not in self.headers.get("Authorization", ""):
            self._reply(401, b'{"errors": [{"message": "user is not logged in"}]}')
            return
        with server.lock:
            status, answer = server.answer(request, content["query"])
        self._reply(status, json.dumps(answer).encode())

    @property
    def _path(self) -> str:
        return urllib.parse.urlparse(self.path).path

    @property
    def _is_download(self) -> bool:
        return self.command == "GET" and self._path.split("/")[1] in ("run-files", "artifact-files", "manifest")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            data = b"".join(parts)
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def _record(self, body: bytes, operation: str = "", variables: Node | None = None) -> Request:
        request = Request(self.command, self._path, body, dict(self.headers), operation, variables or {})
        with self.server_.lock:
            self.server_.requests.append(request)
        if self.server_.hang or (self.server_.hang_downloads and self._is_download):
            self.server_.stopped.wait()
            raise ConnectionAbortedError
        return request

    def _fails(self, status: int | None) -> bool:
        if status:
            self._reply(status, b'{"errors": [{"message": "injected"}]}')
        return status is not None

    def _reply(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _send_file(self, data: bytes) -> None:
        """A whole file; or, as a fault, the promise of all and half of it."""
        if not self.server_.cut_downloads:
            self._reply(200, data)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.close_connection = True

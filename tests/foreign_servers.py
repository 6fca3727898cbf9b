"""Recorded protocol: local HTTP servers that behave as dCache, a Oneprovider and Rucio are documented to.

No program of these projects runs here; the rules are those of dCache's user guide ("WebDAV", Redirection), Onedata's
guide ("CDMI") and Rucio's REST client. `Faults` makes a server fail on purpose: with a status, or by cutting the line
in the middle of a body.
"""

from __future__ import annotations

import contextlib
import json
import posixpath
import ssl
import threading
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

CUT = -1
"""Instead of a status: end the connection half-way through the body."""


@dataclass(slots=True)
class Seen:
    """A request as a server got it."""

    method: str
    path: str
    query: str
    authorization: str
    expected: bool
    body: bytes = b""


@dataclass(slots=True)
class World:
    """Files by path, folders, faults to come and requests so far of one server."""

    files: dict[str, bytes] = field(default_factory=dict)
    folders: set[str] = field(default_factory=lambda: {"/"})
    faults: list[tuple[str, str, int, str]] = field(default_factory=list)
    """Method, end of the path, status or `CUT`, body; each is used up once."""
    seen: list[Seen] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    headers: dict[str, str] = field(default_factory=dict)
    """Added to answers that are faults."""

    def fail(self, method: str, end: str, status: int, body: str = "", times: int = 1) -> None:
        """Have the next requests that fit fail."""
        self.faults += [(method, end, status, body)] * times

    def fault(self, method: str, path: str) -> tuple[int, str] | None:
        with self.lock:
            for fault in self.faults:
                if fault[0] == method and path.endswith(fault[1]):
                    self.faults.remove(fault)
                    return fault[2], fault[3]
        return None

    def parents(self, path: str) -> bool:
        return posixpath.dirname(path) in self.folders

    def asked(self, method: str) -> list[Seen]:
        """The requests of that method."""
        return [request for request in self.seen if request.method == method]

    def partial(self) -> list[str]:
        """Names of files that are on their way."""
        return [path for path in self.files if path.endswith(".part")]


class Handler(BaseHTTPRequestHandler):
    """What the servers have in common."""

    protocol_version = "HTTP/1.1"
    world: World
    _methods: ClassVar[tuple[str, ...]] = ("GET", "PUT", "POST", "DELETE", "PROPFIND", "MKCOL", "MOVE")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the library's
        """Not on the terminal."""

    def handle_expect_100(self) -> bool:
        return True  # answered by `body`, so that a redirect can come first

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_") and name[3:] in self._methods:
            return self.handle_any
        raise AttributeError(name)

    @property
    def where(self) -> str:
        path = unquote(urlsplit(self.path).path)
        return path.rstrip("/") or "/"

    @property
    def kept(self) -> str:
        """Where the world keeps the file of this request."""
        return self.where

    @property
    def query(self) -> str:
        return urlsplit(self.path).query

    def handle_any(self) -> None:
        expected = self.headers.get("Expect", "").lower() == "100-continue"
        authorization = self.headers.get("Authorization") or self.headers.get("X-Auth-Token") or ""
        self.seen = Seen(self.command, self.where, self.query, authorization, expected)
        with self.world.lock:
            self.world.seen.append(self.seen)
        fault = self.world.fault(self.command, self.where)
        if fault and fault[0] == CUT:
            return self.cut()
        if fault:
            return self.answer(fault[0], fault[1].encode(), self.world.headers, close=True)
        return self.act()

    def act(self) -> None:
        raise NotImplementedError

    def body(self) -> bytes:
        """The whole body, asked for if the client waits."""
        if self.seen.expected:
            self.send_response_only(100)
            self.end_headers()
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            pieces = b""
            while size := int(self.rfile.readline(), 16):
                pieces += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            self.seen.body = pieces
        else:
            self.seen.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return self.seen.body

    def cut(self) -> None:
        """End in the middle: of the answer to a GET, of the body of a PUT (half of it is kept, as a server would)."""
        self.close_connection = True
        if self.command == "PUT":
            if self.seen.expected:
                self.send_response_only(100)
                self.end_headers()
            half = self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            with self.world.lock:
                self.world.files[self.kept] = half
        elif self.command == "GET":
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"half")
        self.wfile.flush()
        self.connection.close()

    def answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, *, close: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        # What was not read of the body would be taken for the next request.
        if close or (self.seen.expected and not self.seen.body):
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)

    def json(self, status: int, *values: Any, headers: dict[str, str] | None = None) -> None:
        self.answer(status, "\n".join(json.dumps(value) for value in values).encode(), headers)


class Dav(Handler):
    """WebDAV as far as the client needs it; `renames` and `replaces` say what it can't do."""

    authorization = ""
    renames = True
    replaces = True

    def act(self) -> None:
        if self.authorization and self.seen.authorization != self.authorization:
            return self.answer(
                401, b"<html><head><title>x</title></head><body>who are you?</body></html>", close=True
            )
        with self.world.lock:
            getattr(self, f"on_{self.command.lower()}")()
        return None

    def on_get(self) -> None:
        found = self.world.files.get(self.where)
        self.answer(404) if found is None else self.answer(200, found)

    def on_put(self) -> None:
        if not self.world.parents(self.where):
            return self.answer(409, b"no parent", close=True)
        if not self.replaces and self.where in self.world.files:
            return self.answer(403, b"overwriting is not allowed", close=True)
        known = self.where in self.world.files
        self.world.files[self.where] = self.body()
        return self.answer(204 if known else 201)

    def on_delete(self) -> None:
        self.answer(404 if self.world.files.pop(self.where, None) is None else 204)

    def on_mkcol(self) -> None:
        if self.where in self.world.folders:
            return self.answer(405)
        if not self.world.parents(self.where):
            return self.answer(409)
        self.world.folders.add(self.where)
        return self.answer(201)

    def on_move(self) -> None:
        target = unquote(urlsplit(self.headers["Destination"]).path)
        if not self.renames:
            return self.answer(403, b"no renaming")
        if self.where not in self.world.files:
            return self.answer(404)
        if not self.replaces and target in self.world.files:
            return self.answer(412, b"it is there")
        self.world.files[target] = self.world.files.pop(self.where)
        return self.answer(201)

    def on_propfind(self) -> None:
        self.body()
        if self.where not in self.world.files and self.where not in self.world.folders:
            return self.answer(404)
        size = f"<d:getcontentlength>{len(self.world.files.get(self.where, b''))}</d:getcontentlength>"
        kind = (
            "<d:resourcetype><d:collection/></d:resourcetype>" if self.where in self.world.folders else size
        )
        return self.answer(
            207,
            (
                f'<d:multistatus xmlns:d="DAV:"><d:response><d:href>{urlsplit(self.path).path}</d:href><d:propstat>'
                f"<d:prop>{kind}</d:prop><d:status>HTTP/1.1 200 OK</d:status>"
                "</d:propstat></d:response></d:multistatus>"
            ).encode(),
        )


class Door(Dav):
    """A WebDAV door of dCache: content is moved by the pool, with tokens that are good once."""

    pool = ""
    tickets: set[str]

    def on_get(self) -> None:
        self.answer(404) if self.where not in self.world.files else self.onward()

    def on_put(self) -> None:
        # Clients that don't ask first are served by the door itself.
        if not self.seen.expected:
            return super().on_put()
        if not self.world.parents(self.where):
            return self.answer(409, b"no parent", close=True)
        return self.onward()

    def onward(self) -> None:
        ticket = uuid.uuid4().hex
        self.tickets.add(ticket)
        self.answer(
            307,
            headers={"Location": f"{self.pool}{urlsplit(self.path).path}?dcache-http-uuid={ticket}"},
            close=True,
        )


class Pool(Handler):
    """A data server of dCache: knows no users, only tickets."""

    tickets: set[str]
    files: dict[str, bytes]

    def act(self) -> None:
        ticket = parse_qs(self.query).get("dcache-http-uuid", [""])[0]
        if ticket not in self.tickets:
            return self.answer(403, b"unknown ticket", close=True)
        self.tickets.remove(ticket)
        if self.command == "GET":
            return self.answer(200, self.files[self.where])
        self.files[self.where] = self.body()
        return self.answer(201)


class Oneprovider(Handler):
    """CDMI of Onedata. A file without CDMI's version header is its bare content."""

    token = ""
    moves_over = True

    @property
    def kept(self) -> str:
        return self.where.removeprefix("/cdmi")

    def act(self) -> None:
        if self.seen.authorization != self.token:
            return self.json(401, {"error": {"id": "unauthorized", "description": "The token is invalid."}})
        cdmi = self.headers.get("X-CDMI-Specification-Version") == "1.1.1"
        with self.world.lock:
            folder = urlsplit(self.path).path.endswith("/")
            return {"GET": self.get, "PUT": self.put, "DELETE": self.remove}[self.command](cdmi, folder)

    def posix(self, name: str) -> None:
        what = f"Operation failed with POSIX error: {name}."
        self.answer(400, json.dumps({"error": {"id": "posix", "description": what}}).encode(), close=True)

    def get(self, cdmi: bool, folder: bool) -> None:
        where = self.where.removeprefix("/cdmi")
        if folder:
            if where not in self.world.folders:
                return self.posix("enoent") if where.count("/") > 1 else self.answer(404)
            names = {
                name.removeprefix(f"{where}/") for name in self.world.files if name.startswith(f"{where}/")
            }
            inner = {
                f"{posixpath.basename(name)}/"
                for name in self.world.folders
                if posixpath.dirname(name) == where
            }
            return self.json(
                200, {"objectName": where, "children": sorted({n for n in names if "/" not in n} | inner)}
            )
        if where not in self.world.files:
            return self.answer(404)
        if not cdmi:
            return self.answer(200, self.world.files[where])
        size = str(len(self.world.files[where]))
        return self.json(200, {"metadata": {"cdmi_size": size, "cdmi_mtime": "2026-01-14T09:42:25Z"}})

    def put(self, cdmi: bool, folder: bool) -> None:
        where = self.where.removeprefix("/cdmi")
        if not self.world.parents(where):
            return self.posix("enoent")
        if folder:
            self.body()
            if where in self.world.folders:
                return self.posix("eexist")
            self.world.folders.add(where)
            return self.json(201, {"objectType": "application/cdmi-container"})
        if not cdmi:
            self.world.files[where] = self.body()
            return self.answer(201)
        source = json.loads(self.body())["move"]
        if source not in self.world.files:
            return self.answer(404)
        if where in self.world.files and not self.moves_over:
            return self.posix("eexist")
        self.world.files[where] = self.world.files.pop(source)
        return self.json(201, {"completionStatus": "Complete"})

    def remove(self, cdmi: bool, folder: bool) -> None:
        where = self.where.removeprefix("/cdmi")
        self.answer(404 if folder or self.world.files.pop(where, None) is None else 204)


def _md5(content: bytes) -> str:
    return md5(content, usedforsecurity=False).hexdigest()


@dataclass(slots=True)
class Catalogue:
    """What Rucio knows: files by scope and name, rules, scopes."""

    replicas: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    rules: list[dict[str, Any]] = field(default_factory=list)
    scopes: set[str] = field(default_factory=lambda: {"ada"})
    elements: list[str] = field(default_factory=list)
    """Addresses of the storage elements RSE0, RSE1 …"""

    def pfn(self, number: int, scope: str, name: str) -> str:
        element = self.elements[number].replace("http:", "dav:")
        return f"{element}/rse/{scope}/{_md5(name.encode())[:2]}/{name}"

    def add(self, scope: str, name: str, content: bytes, rses: tuple[str, ...]) -> None:
        """Register a file."""
        facts = {
            "bytes": len(content),
            "adler32": f"{zlib.adler32(content):08x}",
            "md5": _md5(content),
        }
        self.replicas[scope, name] = {"scope": scope, "name": name, **facts, "at": list(rses)}


class Rucio(Handler):
    """The REST interface of Rucio, and the token endpoint of its issuer."""

    catalogue: Catalogue
    token = ""
    refresh = ""

    def act(self) -> None:
        self.body()
        if self.where == "/token":
            form = {name: values[0] for name, values in parse_qs(self.seen.body.decode()).items()}
            if form.get("refresh_token") != self.refresh:
                return self.json(
                    400, {"error": "invalid_grant", "error_description": f"bad {form['refresh_token']}"}
                )
            return self.json(200, {"access_token": self.token, "expires_in": 3600})
        if self.headers.get("X-Rucio-Auth-Token") != self.token:
            return self.refuse(401, "CannotAuthenticate", "Cannot authenticate with given credentials")
        with self.world.lock:
            return self.route(self.where.strip("/").split("/"))

    def refuse(self, status: int, kind: str, words: str) -> None:
        self.json(
            status, {"ExceptionClass": kind, "ExceptionMessage": words}, headers={"ExceptionClass": kind}
        )

    def route(self, parts: list[str]) -> None:
        value = json.loads(self.seen.body) if self.seen.body else {}
        match self.command, parts:
            case "POST", ["replicas", "list"]:
                return self.replicas(value)
            case "POST", ["replicas"]:
                return self.register(value)
            case "POST", ["rules"]:
                if any(rule["dids"] == value["dids"] for rule in self.catalogue.rules):
                    return self.refuse(409, "DuplicateRule", "A duplicate rule")
                self.catalogue.rules.append({**value, "id": uuid.uuid4().hex})
                return self.json(201, [self.catalogue.rules[-1]["id"]])
            case "DELETE", ["rules", rule]:
                self.catalogue.rules = [known for known in self.catalogue.rules if known["id"] != rule]
                return self.answer(200)
            case "GET", ["rses", rse, "lfns2pfns"]:
                asked = {name: values[0] for name, values in parse_qs(self.query).items()}
                scope, _, name = asked["lfn"].partition(":")
                if asked["scheme"] != "dav":
                    return self.refuse(
                        404, "RSEProtocolNotSupported", "RSE does not support requested protocol"
                    )
                return self.json(200, {asked["lfn"]: self.catalogue.pfn(int(rse[3:]), scope, name)})
            case "GET", ["dids", scope, name, "meta"]:
                found = self.catalogue.replicas.get((scope, name))
                if found is None:
                    return self.refuse(
                        404, "DataIdentifierNotFound", f"Data identifier '{scope}:{name}' not found"
                    )
                return self.json(200, found)
            case "GET", ["dids", scope, name, "rules"]:
                return self.json(200, *[r for r in self.catalogue.rules if r["dids"][0]["name"] == name])
            case "GET", ["dids", scope, "dids", "search"]:
                start = parse_qs(self.query)["name"][0].rstrip("*")
                return self.json(
                    200,
                    *[
                        f
                        for (s, n), f in self.catalogue.replicas.items()
                        if s == scope and n.startswith(start)
                    ],
                )
            case "POST", ["accounts", _, "scopes", scope]:
                self.catalogue.scopes.add(scope)
                return self.answer(201, b"Created")
        return self.refuse(404, "NotFound", self.where)

    def replicas(self, value: dict[str, Any]) -> None:
        found = []
        for did in value["dids"]:
            known = self.catalogue.replicas.get((did["scope"], did["name"]))
            if known is None:
                continue
            places = {
                rse: [self.catalogue.pfn(int(rse[3:]), did["scope"], did["name"])] for rse in known["at"]
            }
            pfns = {
                pfns[0]: {"rse": rse, "type": "DISK", "priority": number + 1, "domain": "wan"}
                for number, (rse, pfns) in enumerate(places.items())
            }
            found.append({**known, "rses": places, "pfns": pfns})
        self.json(200, *found)

    def register(self, value: dict[str, Any]) -> None:
        for file in value["files"]:
            name = (file["scope"], file["name"])
            if file["scope"] not in self.catalogue.scopes:
                return self.refuse(404, "ScopeNotFound", f"Scope '{file['scope']}' does not exist")
            if name in self.catalogue.replicas:
                return self.refuse(409, "DataIdentifierAlreadyExists", "Data Identifier Already Exists")
            self.catalogue.replicas[name] = {**file, "at": [value["rse"]]}
        return self.answer(201, b"Created")


@contextlib.contextmanager
def serving(kind: type[Handler], **facts: Any) -> Iterator[tuple[str, World]]:
    """A server of that kind in a thread, with facts as its class attributes; its address and its world."""
    world = facts.pop("world", None) or World()
    tls: ssl.SSLContext | None = facts.pop("tls", None)
    handler = type(kind.__name__, (kind,), {"world": world, **facts})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}", world
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

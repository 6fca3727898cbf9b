"""The S3 server as an ASGI application: identify, permit, call the operation, answer.

Made by the composition root, which hands in the index (rows), the blobs (bodies), the rules, and whom to wake after
a commit; run by uvicorn in a process of its own. It is plain ASGI without a framework, because that process should
stay small. All errors end here, as XML.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Sequence

from oscar import telemetry
from oscar.errors import OscarError
from oscar.model.object import Bucket, Credential
from oscar.objects.base import ObjectIndex
from oscar.objects.embedded import cors, sweep
from oscar.objects.embedded.blobs import MAX_PIECE, Blobs
from oscar.objects.embedded.buckets import create_bucket
from oscar.objects.embedded.faults import ClientGone, NotModified, S3Error, as_fault, fault
from oscar.objects.embedded.intake import MAX_OBJECT
from oscar.objects.embedded.requests import Receive, Request, Scope, Send
from oscar.objects.embedded.routes import Operation, find
from oscar.objects.embedded.signature import SigningKeys, read_claim, verify
from oscar.objects.embedded.site import XML_TYPE, Answer, Authorize, CheckPolicy, FileBody, Site
from oscar.objects.embedded.slots import Slots
from oscar.objects.embedded.xml import error_document

_log = telemetry.get("s3")

SWEEP_EVERY = 6 * 3600.0
"""Seconds between sweeps; the first is at the start."""
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)


class S3App:
    """The ASGI application."""

    def __init__(
        self,
        index: ObjectIndex,
        blobs: Blobs,
        authorize: Authorize,
        *,
        check_policy: CheckPolicy,
        may_create: Callable[[Credential], bool],
        region: str = "us-east-1",
        on_commit: Callable[[], None] = lambda: None,
        domain: str | None = None,
        cors_origins: Sequence[str] = ("*",),
        max_object: int = MAX_OBJECT,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Put the server together.

        Args:
            index: the rows.
            blobs: the bodies.
            authorize: the rules, such as `auth.s3.may_s3`.
            check_policy: checks the text of a bucket policy, such as `auth.s3.check_policy`.
            may_create: who may create buckets over S3, such as `auth.s3.may_create`.
            region: told to clients; signatures of any region are accepted.
            on_commit: called after a commit that may have enqueued jobs; must not block.
            domain: buckets are also served at `<bucket>.<domain>`.
            cors_origins: origins allowed for buckets without a CORS configuration; `*` for any.
            max_object: largest object in bytes.
            now: the clock, Unix seconds.
        """
        self.site = Site(
            index=index,
            blobs=blobs,
            slots=Slots(),
            authorize=authorize,
            check_policy=check_policy,
            may_create=may_create,
            on_commit=on_commit,
            region=region,
            max_object=max_object,
            cors_origins=tuple(cors_origins),
            now=now,
        )
        self._domain = domain
        self._keys = SigningKeys()
        self._default_rules = cors.default_rules(cors_origins)
        self._sweeper: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event of ASGI."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            raise NotImplementedError(f"ASGI scope {scope['type']}")

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        self._sweeper = asyncio.create_task(self._sweep())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._sweeper.cancel()
        await asyncio.wait([self._sweeper])
        await send({"type": "lifespan.shutdown.complete"})

    async def _sweep(self) -> None:
        while True:
            site, removed, expired = self.site, 0, 0
            try:
                removed = await sweep.sweep(site.index, site.blobs)
                expired = await sweep.expire_uploads(site.index, site.blobs, site.now_ms())
            except OscarError as error:
                _log.warning("sweep_failed", error=str(error))
            if removed or expired:
                _log.info("swept", orphans=removed, uploads=expired)
            await asyncio.sleep(SWEEP_EVERY)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = secrets.token_hex(8).upper()
        request: Request | None = None
        try:
            request = Request(scope, receive, request_id, self._domain)
            answer = await self._answer(request)
        except ClientGone:
            return
        except NotModified as unchanged:
            answer = Answer(304, headers=unchanged.headers)
        except OscarError as error:
            answer = self._error(scope, request_id, error)
        except Exception:  # noqa: BLE001 - the last resort, logged
            _log.exception("request_failed", method=scope["method"], path=scope["path"], request=request_id)
            answer = self._error(scope, request_id, fault("InternalError"))
        if request is not None and "origin" in request.headers:
            self._allow_origin(request, answer)
        if request is None or request.unread:
            # The body that was announced may come or not: what follows on this connection can't be told apart.
            answer.headers["connection"] = "close"
        await self._send(scope, receive, send, request_id, answer)

    async def _answer(self, request: Request) -> Answer:
        if request.method == "OPTIONS":
            return await self._preflight(request)
        operation = find(request)
        await self._identify(request, operation)
        if request.bucket and request.known_bucket is None and operation.handler is not create_bucket:
            raise fault("NoSuchBucket", BucketName=request.bucket)
        self._permit(request, operation)
        return await operation.handler(self.site, request)

    async def _identify(self, request: Request, operation: Operation) -> None:
        """Look up key pair, bucket and object at once, then check the signature."""
        site = self.site
        claim = read_claim(request, site.now())
        conditional = "if-match" in request.headers or "if-none-match" in request.headers
        wants_object = operation.reads_object or (conditional and bool(request.key))
        known = await site.index.lookup(
            access_key=claim.access_key if claim else None,
            bucket=request.bucket or None,
            key=request.key if wants_object else None,
        )
        if claim is not None:
            if known.credential is None:
                raise fault("InvalidAccessKeyId", AWSAccessKeyId=claim.access_key)
            key = self._keys.get(known.credential.secret_key, claim.date, claim.region)
            verify(request, claim, key)
            request.claim, request.signing_key, request.credential = claim, key, known.credential
        request.known_bucket, request.known_object = known.bucket, known.object

    def _permit(self, request: Request, operation: Operation) -> None:
        bucket: Bucket | None = request.known_bucket
        if operation.action:
            if bucket is None or not self.site.authorize(
                request.credential, operation.action, bucket, request.key
            ):
                raise fault("AccessDenied")
        elif not request.bucket and request.credential is None:
            # Who has no keys has no buckets to list.
            raise fault("AccessDenied")

    async def _preflight(self, request: Request) -> Answer:
        if request.bucket:
            request.known_bucket = await self.site.index.bucket(request.bucket)
        return Answer(headers=cors.preflight_headers(self._rules(request), request.headers))

    def _rules(self, request: Request) -> Sequence[cors.Rule]:
        bucket = request.known_bucket
        return cors.parse_rules(bucket.cors.encode()) if bucket and bucket.cors else self._default_rules

    def _allow_origin(self, request: Request, answer: Answer) -> None:
        if request.method != "OPTIONS":
            rule = cors.find_rule(self._rules(request), request.headers["origin"], request.method)
            if rule is not None:
                answer.headers.update(cors.answer_headers(rule, request.headers["origin"]))

    def _error(self, scope: Scope, request_id: str, error: OscarError) -> Answer:
        shown: S3Error = as_fault(error)
        if shown.status >= 500 and shown is not error:  # noqa: PLR2004 - ours, not the client's
            _log.error("request_failed", error=str(error), path=scope["path"], request=request_id)
        body = error_document(shown.code, shown.message, shown.details, scope["path"], request_id)
        return Answer(shown.status, body, {"content-type": XML_TYPE, **shown.headers})

    async def _send(
        self, scope: Scope, receive: Receive, send: Send, request_id: str, answer: Answer
    ) -> None:
        file = answer.file
        length = answer.length if answer.length is not None else len(answer.body)
        headers = [(name.encode("latin-1"), value.encode()) for name, value in answer.headers.items()]
        headers.append((b"x-amz-request-id", request_id.encode()))
        if answer.status not in {204, 304}:
            headers.append((b"content-length", b"%d" % length))
        try:
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            if file is None or scope["method"] == "HEAD":
                await send({"type": "http.response.body", "body": answer.body})
            else:
                await self._send_file(receive, send, file)
        finally:
            if file is not None:
                os.close(file.descriptor)

    async def _send_file(self, receive: Receive, send: Send, file: FileBody) -> None:
        """Send a file in pieces, until its end or until the client has gone away."""
        offset, end = file.offset, file.offset + file.length
        # Sending to a closed connection raises nothing, so a long answer watches for it.
        gone = asyncio.create_task(_disconnected(receive)) if file.length > MAX_PIECE else None
        try:
            with self.site.blobs.moving():
                await self._send_pieces(send, file, offset, end, gone)
        finally:
            if gone is not None:
                gone.cancel()

    async def _send_pieces(
        self, send: Send, file: FileBody, offset: int, end: int, gone: asyncio.Task[None] | None
    ) -> None:
        while offset < end:
            if gone is not None:
                # A fast reader must not keep the loop for itself.
                await asyncio.sleep(0)
                if gone.done():
                    return
            size = min(self.site.blobs.piece, end - offset)
            piece = _read_now(file.descriptor, size, offset)
            if piece is None:
                piece = await self.site.blobs.run(os.pread, file.descriptor, size, offset)
            if not piece:
                raise OSError("a body is shorter than its row says")
            offset += len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": offset < end})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _read_now(descriptor: int, size: int, offset: int) -> bytes | bytearray | None:
    """What the page cache holds there, without waiting for the disk; None when a thread must read it."""
    if not _NOWAIT:
        return None
    buffer = bytearray(size)
    try:
        count = os.preadv(descriptor, [buffer], offset, _NOWAIT)
    except OSError:
        # Not in memory (EAGAIN), or a file system that can't tell (EOPNOTSUPP).
        return None
    if not count:
        return None
    return buffer if count == size else buffer[:count]

"""Synchronous calls: `POST /run/{service}`.

Called by `api.runs`; calls the engine's ability to invoke. Leaves no job: the answer is the result.
"""

from __future__ import annotations

import uuid

from oscar import tracing
from oscar.auth.rules import Action
from oscar.compute.base import Answer, Run
from oscar.core import quotas, services
from oscar.core.platform import Platform
from oscar.core.requests import Incoming
from oscar.errors import BodyTooLarge, Unsupported
from oscar.model.event import decode
from oscar.model.request import RequestKind
from oscar.model.user import Caller


async def invoke(
    p: Platform, caller: Caller, name: str, body: bytes, *, incoming: Incoming, owner: str | None = None
) -> Answer:
    """Run the service's script on the body and give its answer.

    Raises:
        ServiceNotFound (404), Forbidden (403), BadRequest (400), BodyTooLarge (413), TooManyRequests (429),
        Unavailable (503), InvocationTimeout (504), EngineError (502).
    """
    known = await services.find(p, caller, name, action=Action.CALL, owner=owner)
    incoming.of(RequestKind.SYNC, known.row)
    if p.invokes is None:
        raise Unsupported("This engine has no synchronous calls", fix="use POST /job instead")
    if len(body) > p.settings.body_limit:
        raise BodyTooLarge(
            f"The body has {len(body)} bytes, the limit is {p.settings.body_limit}",
            field="body",
            fix="upload it to a bucket and send its event, or raise OSCAR_MAX_BODY_MB",
        )
    if known.service.isolation_level == "USER":
        services.check_private(caller, known.service, decode(body))
    timeout = float(p.settings.read_timeout)
    own = known.service.timeout_seconds
    run_id = uuid.uuid4().hex
    return await p.invokes.invoke(
        Run(
            name=run_id,
            job_id=run_id,
            attempt=1,
            service=known.service,
            payload=body,
            trace=tracing.cause() or "",
            user=caller.id,
            timeout=min(timeout, own) if own else timeout,
            workers=await quotas.workers_for(p, known.service),
        )
    )

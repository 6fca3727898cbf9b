"""The short way to the routes that all calls and events take, past FastAPI's matching and parameters.

Between `Gate` and the FastAPI application, made by `api.build`. Only a request without any of a route's optional
parameters goes this way, to the very function that FastAPI would call; with all others FastAPI does what it does.
What that saves is in docs/sync.md.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.routing import APIRoute

from oscar.app.edge import Message, Scope
from oscar.app.render import answer

Endpoint = Callable[..., Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Short:
    """A route as far as its short way goes."""

    path: re.Pattern[str]
    methods: frozenset[str]
    headers: frozenset[bytes]
    """Those that are parameters, in small letters."""
    endpoint: Endpoint

    def takes(self, scope: Scope) -> re.Match[str] | None:
        """The parts of the request's path, when it is for this route and has no optional parameters."""
        found = self.path.fullmatch(scope["path"])
        if found is None or scope["method"] not in self.methods or scope["query_string"]:
            return None
        return found if self.headers.isdisjoint([name for name, _ in scope["headers"]]) else None


def short(router: APIRouter, endpoint: Endpoint) -> Short:
    """The short way to a function of a router.

    Args:
        router: it has the route.
        endpoint: takes `request` and the parts of the path; everything else that it takes is optional, and in query
            or header.
    """
    [route] = [each for each in router.routes if isinstance(each, APIRoute) and each.endpoint is endpoint]
    takes = route.dependant
    if (
        takes.dependencies
        or takes.body_params
        or takes.cookie_params
        or takes.request_param_name != "request"
    ):
        raise ValueError(f"{route.path} takes more than a short way gives")
    return Short(
        path=route.path_regex,
        methods=frozenset(route.methods or ()),
        headers=frozenset(field.alias.lower().encode() for field in takes.header_params),
        endpoint=endpoint,
    )


class Front:
    """Middleware that calls the functions of some routes itself."""

    def __init__(self, app: FastAPI, *shorts: Short) -> None:
        """Stand before that application, which has the routes."""
        self._app = app
        self._shorts = shorts

    async def __call__(
        self,
        scope: Scope,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            for way in self._shorts:
                if found := way.takes(scope):
                    scope["app"] = self._app
                    request = Request(scope, receive, send)
                    try:
                        response = await way.endpoint(request=request, **found.groupdict())
                    except Exception as error:  # noqa: BLE001 - as FastAPI's handlers: rendered, and logged there
                        response = answer(request, error)
                    await response(scope, receive, send)
                    return
        await self._app(scope, receive, send)

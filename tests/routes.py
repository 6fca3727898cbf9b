"""The routes of the REST API as `METHOD /path`, for the docs tests: those that the OpenAPI page shows."""

from __future__ import annotations

import importlib
import pkgutil

from fastapi import APIRouter
from fastapi.routing import APIRoute

import oscar.api


def routes() -> list[str]:
    """All routes of all modules of `oscar.api`."""
    found = set()
    for info in pkgutil.iter_modules(oscar.api.__path__):
        router = getattr(importlib.import_module(f"oscar.api.{info.name}"), "router", None)
        if not isinstance(router, APIRouter):
            continue
        for route in router.routes:
            if isinstance(route, APIRoute) and route.include_in_schema:
                found |= {f"{method} {route.path}" for method in route.methods or ()}
    return sorted(found)

"""The direct ways to exposed services, past our own proxy: an Ingress, or an HTTPRoute of the Gateway API.

Called by `exposed`. Off unless `EXPOSED_SERVICES_ROUTE_KIND` says which: requests then go through the API server of the
platform. A way that could not keep strangers out of a service with `set_auth` is never made. The objects are pure
functions; `Routes` applies them.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Any, Literal

from oscar.compute.kubernetes.cluster import Cluster
from oscar.compute.kubernetes.exposed_manifests import EXPOSED, Named, base_path
from oscar.compute.kubernetes.kinds import HTTP_ROUTE, INGRESS, MIDDLEWARE, SECRET
from oscar.compute.kubernetes.names import Names
from oscar.model.service import Service

Body = dict[str, Any]
RouteKind = Literal["", "ingress", "httproute"]


@dataclass(frozen=True, slots=True)
class Way:
    """How the cluster's own entrance is used."""

    kind: RouteKind = ""
    host: str = ""
    """`INGRESS_HOST`: of all routes; empty for any."""
    ingress_class: str = "nginx"
    """Annotations are those of ingress-nginx; other classes get plain rules, and no service that needs more."""
    gateway: str = ""
    gateway_namespace: str = ""
    traefik: bool = False
    """Whether the Gateway is Traefik's, whose middlewares can ask for a log-in."""
    api_url: str = ""
    """The API's address as the entrance reaches it, to ask whether a request may pass."""
    cors_origins: str = ""
    cors_methods: str = ""
    cors_headers: str = ""


class Routes:
    """Applies and removes the routes of one installation."""

    def __init__(self, cluster: Cluster, names: Names, way: Way) -> None:
        self._cluster = cluster
        self._names = names
        self._way = way

    def check(self, service: Service) -> list[str]:
        """What can't be had this way, as warnings for the service's owner."""
        if self._way.kind and (why := hindrance(self._way, service)):
            return [f"expose: no direct route, requests go through the platform: {why}"]
        return []

    async def apply(self, service: Service, namespace: str) -> None:
        """Have the service's route as the settings say."""
        way = self._way
        if not way.kind or service.expose.nodePort or hindrance(way, service):
            await self.remove(service.name, namespace)
            return
        for kind, body in objects(self._names, way, service, namespace):
            await self._cluster.apply(kind, body)

    async def remove(self, service_name: str, namespace: str) -> None:
        """Remove the service's route. Silent if absent."""
        named = Named.of(service_name)
        if not self._way.kind:
            return
        await self._cluster.delete(INGRESS, named.ingress, namespace)
        if self._way.kind == "httproute":
            await self._cluster.delete(HTTP_ROUTE, named.ingress, namespace)
            if self._way.traefik:
                await self._cluster.delete(MIDDLEWARE, named.auth, namespace)
        await self._cluster.delete(SECRET, named.auth, namespace)


def hindrance(way: Way, service: Service) -> str:
    """Why the service can't have that way; empty when it can."""
    expose = service.expose
    if way.kind == "ingress" and way.ingress_class != "nginx" and not expose.rewrite_target:
        return f"the class {way.ingress_class!r} can't take the prefix from a path, which rewrite_target: true keeps"
    if not expose.set_auth:
        return ""
    if way.kind == "ingress":
        if expose.auth_type == "forward":
            return "forward authentication needs routes by Traefik (EXPOSED_SERVICES_ROUTE_KIND=httproute)"
        if way.ingress_class != "nginx":
            return f"log-ins are known to work with ingress-nginx, the class here is {way.ingress_class!r}"
        return ""
    if not way.traefik:
        return "the Gateway API knows no log-in, and the Gateway is not Traefik's"
    if expose.auth_type == "forward" and not way.api_url:
        return "OSCAR_INTERNAL_URL is not set, so the entrance can't ask who may pass"
    return ""


def objects(names: Names, way: Way, service: Service, namespace: str) -> list[tuple[Any, Body]]:
    """All objects of the way, with their kinds, in the order of their making."""
    found: list[tuple[Any, Body]] = []
    if service.expose.set_auth and service.expose.auth_type == "basic":
        found.append((SECRET, password_file(names, way, service, namespace)))
    if way.kind == "ingress":
        return [*found, (INGRESS, ingress(names, way, service, namespace))]
    if service.expose.set_auth:
        found.append((MIDDLEWARE, middleware(names, way, service, namespace)))
    return [*found, (HTTP_ROUTE, http_route(names, way, service, namespace))]


def password_file(names: Names, way: Way, service: Service, namespace: str) -> Body:
    """The Secret with name and token of the service as Apache's htpasswd has them."""
    # The form that both ingress-nginx and Traefik read. A token of 256 random bits can't be guessed from its hash.
    digest = hashlib.sha1(service.token.encode(), usedforsecurity=False).digest()
    line = f"{service.name}:{{SHA}}{base64.b64encode(digest).decode()}".encode()
    key = "auth" if way.kind == "ingress" else "users"
    return {
        **SECRET.head,
        "metadata": _metadata(names, service, namespace, Named.of(service.name).auth),
        "type": "Opaque",
        "data": {key: base64.b64encode(line).decode()},
    }


def ingress(names: Names, way: Way, service: Service, namespace: str) -> Body:
    """The Ingress; rewriting, log-in and CORS by the annotations of ingress-nginx."""
    expose, path = service.expose, base_path(service)
    is_nginx = way.ingress_class == "nginx"
    annotations: dict[str, str] = {}
    if is_nginx:
        annotations["nginx.ingress.kubernetes.io/proxy-body-size"] = "0"
        annotations["nginx.ingress.kubernetes.io/use-regex"] = "true"
        target = "/$1" if not expose.rewrite_target else f"{path}/$1"
        annotations["nginx.ingress.kubernetes.io/rewrite-target"] = target
        if expose.set_auth:
            annotations |= {
                "nginx.ingress.kubernetes.io/auth-type": "basic",
                "nginx.ingress.kubernetes.io/auth-secret": Named.of(service.name).auth,
                "nginx.ingress.kubernetes.io/auth-realm": f"Log in to {service.name}",
            }
        if way.cors_origins:
            annotations |= {
                "nginx.ingress.kubernetes.io/enable-cors": "true",
                "nginx.ingress.kubernetes.io/cors-allow-origin": way.cors_origins,
                "nginx.ingress.kubernetes.io/cors-allow-methods": way.cors_methods,
                "nginx.ingress.kubernetes.io/cors-allow-headers": way.cors_headers,
            }
    backend = {"service": {"name": Named.of(service.name).service, "port": {"number": 80}}}
    rule: Body = {
        "http": {
            "paths": [
                {
                    "path": f"{path}/?(.*)" if is_nginx else path,
                    "pathType": "ImplementationSpecific" if is_nginx else "Prefix",
                    "backend": backend,
                }
            ]
        }
    }
    return {
        **INGRESS.head,
        "metadata": {
            **_metadata(names, service, namespace, Named.of(service.name).ingress),
            "annotations": annotations,
        },
        "spec": {
            "ingressClassName": way.ingress_class,
            "rules": [{"host": way.host, **rule} if way.host else rule],
        },
    }


def http_route(names: Names, way: Way, service: Service, namespace: str) -> Body:
    """The HTTPRoute; rewriting by the Gateway API itself, log-in by a middleware of Traefik."""
    path = base_path(service)
    filters: list[Body] = []
    if not service.expose.rewrite_target:
        rewrite = {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}
        filters.append({"type": "URLRewrite", "urlRewrite": rewrite})
    if service.expose.set_auth:
        reference = {"group": "traefik.io", "kind": "Middleware", "name": Named.of(service.name).auth}
        filters.append({"type": "ExtensionRef", "extensionRef": reference})
    parent = {"name": way.gateway} | ({"namespace": way.gateway_namespace} if way.gateway_namespace else {})
    rule: Body = {
        "matches": [{"path": {"type": "PathPrefix", "value": path}}],
        "backendRefs": [{"name": Named.of(service.name).service, "port": 80}],
    }
    return {
        **HTTP_ROUTE.head,
        "metadata": _metadata(names, service, namespace, Named.of(service.name).ingress),
        "spec": {
            "parentRefs": [parent],
            **({"hostnames": [way.host]} if way.host else {}),
            "rules": [rule | ({"filters": filters} if filters else {})],
        },
    }


def middleware(names: Names, way: Way, service: Service, namespace: str) -> Body:
    """Traefik's log-in: by password, or by asking the platform's API."""
    name = Named.of(service.name).auth
    if service.expose.auth_type == "basic":
        spec: Body = {"basicAuth": {"secret": name, "removeHeader": True}}
    else:
        spec = {
            "forwardAuth": {
                "address": f"{way.api_url.rstrip('/')}/system/services/{service.name}/auth",
                "authResponseHeaders": ["Set-Cookie"],
                "addAuthCookiesToResponse": [f"oscar_service_{service.name}_auth"],
            }
        }
    return {
        **MIDDLEWARE.head,
        "metadata": _metadata(names, service, namespace, name),
        "spec": spec,
    }


def _metadata(names: Names, service: Service, namespace: str, name: str) -> Body:
    return {
        "name": name,
        "namespace": namespace,
        "labels": names.service_labels(EXPOSED, service),
    }

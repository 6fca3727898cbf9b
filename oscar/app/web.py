"""What both web servers have in common: uvicorn with TLS when there is a certificate, and proxies that are believed.

Called by `serve` and `s3`.
"""

from __future__ import annotations

import ssl
from typing import Any

import uvicorn

from oscar.app.protocol import BoundedProtocol
from oscar.errors import Misuse
from oscar.settings import Settings


def config(app: Any, settings: Settings, **more: Any) -> uvicorn.Config:
    """How to serve the application, by a socket that listens already."""
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        loop="uvloop",
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=max(1, int(settings.drain)),
        server_header=False,
        # Believing X-Forwarded-For of anybody would let clients choose the address that is recorded.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        **more,
    )


def check_tls(settings: Settings) -> None:
    """Refuse a certificate that can't be used, before anything listens.

    Raises:
        Misuse: one of the two files is not set, can't be read, or they don't belong together.
    """
    if settings.tls_cert is None and settings.tls_key is None:
        return
    for file, setting in ((settings.tls_cert, "OSCAR_TLS_CERT"), (settings.tls_key, "OSCAR_TLS_KEY")):
        if file is None:
            raise Misuse(
                "TLS needs a certificate and its key", field=setting, fix="name a file in PEM format"
            )
        try:
            file.read_bytes()
        except OSError as error:
            raise Misuse(f"Can't read {file}: {error.strerror}", field=setting) from None
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            str(settings.tls_cert), str(settings.tls_key), password=lambda: b""
        )
    except (ssl.SSLError, ValueError) as error:
        raise Misuse(
            f"The certificate and its key can't be used: {error}",
            field="OSCAR_TLS_CERT",
            fix="name a chain and its key in PEM format, the key without a passphrase",
        ) from None

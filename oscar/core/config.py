"""The installation's configuration: what clients read of it, and the list of images that services may use.

Called by `api.system` and, for the images, by `core.services`. What administrators set lies in `state.config`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from oscar import telemetry
from oscar.auth.rules import may_administer, require_user
from oscar.core import users
from oscar.core.platform import Platform
from oscar.errors import BadRequest, Forbidden, InvalidField, Unavailable
from oscar.model.images import check_image, parse_list
from oscar.model.service import Service
from oscar.model.user import Caller

log = telemetry.get("config")

_IMAGES = "allowed_image_repositories"
_MOST_ENTRIES = 1000


async def read(p: Platform, caller: Caller) -> dict[str, Any]:
    """The configuration with the caller's own S3 keys, as `types.ConfigForUser` of the API.

    The S3 address is the one that clients reach (`MINIO_ENDPOINT`).
    """
    require_user(caller)
    keys = await users.credential(p, caller)
    capacity = await p.compute.capacity()
    settings = p.settings
    return {
        "config": {
            "name": settings.name,
            "namespace": settings.namespace,
            "services_namespace": settings.services_namespace,
            "controller_service_account": "",
            "gpu_available": capacity.gpu > 0,
            "interLink_available": False,
            "kueue_enable": False,
            "yunikorn_enable": False,
            "minio_quota_enabled": settings.minio_quota_enabled,
            "volume_enable": settings.volume_enable and p.holds is not None,
            "oidc_groups": list(settings.oidc_groups),
            "serverless_backend": "embedded",
        },
        "minio_provider": {
            "endpoint": p.store.endpoint,
            "region": p.store.region,
            "verify": p.store.verify,
            "access_key": keys.access_key,
            "secret_key": keys.secret_key,
        },
        _IMAGES: await allowed_images(p),
    }


async def change(p: Platform, caller: Caller, data: Mapping[str, Any]) -> dict[str, Any]:
    """Set what of the configuration can be set; the new configuration.

    Args:
        p: the platform.
        caller: an administrator.
        data: `allowed_image_repositories`, a list of texts; an empty list allows all images.

    Raises:
        Forbidden (403), BadRequest, InvalidField (400).
    """
    if not may_administer(caller):
        raise Forbidden("Only an administrator may change the configuration")
    unknown = sorted(set(data) - {_IMAGES})
    if unknown:
        raise BadRequest(f'"{unknown[0]}" can\'t be set here', field=unknown[0], fix=f"send only {_IMAGES}")
    if _IMAGES not in data:
        raise BadRequest(
            "Nothing to set was given", field=_IMAGES, fix=f'send {{"{_IMAGES}": ["ghcr.io/grycap"]}}'
        )
    values = data[_IMAGES]
    parse_list(values)
    if len(values) > _MOST_ENTRIES:
        raise InvalidField(f"The list has more than {_MOST_ENTRIES} entries", field=_IMAGES)
    texts = [str(value).strip() for value in values]
    await p.config.put(_IMAGES, json.dumps(texts))
    log.info("allowed images changed", by=caller.id, count=len(texts))
    return await read(p, caller)


async def allowed_images(p: Platform) -> list[str]:
    """The list as an administrator wrote it; empty when all images are allowed.

    Raises:
        Unavailable: what is stored can't be read, so nothing is allowed until it is set again.
    """
    text = await p.config.get(_IMAGES)
    if text is None:
        return []
    try:
        values = json.loads(text)
        parse_list(values)
    except (ValueError, InvalidField) as error:
        log.warning("the stored list of allowed images can't be read", error=str(error))
        raise Unavailable(
            "The stored list of allowed images can't be read, so no image is allowed",
            field=_IMAGES,
            fix="have an administrator set it again by PUT /system/config",
        ) from None
    return list(values)


async def check_service(p: Platform, service: Service) -> None:
    """Refuse a service whose image is not on the list.

    Raises:
        InvalidField (400): naming `image`. Unavailable (503): the list can't be read.
    """
    shown = await allowed_images(p)
    check_image(service.image, parse_list(shown), shown)

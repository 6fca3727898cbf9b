"""Making orders for staging containers: what a plan moves, and the keys that this needs, no more.

Called by `compute.kubernetes.launch`. Pure.
"""

from __future__ import annotations

from oscar.model.provider import parse_provider
from oscar.model.secrets import without_federation
from oscar.model.service import Service
from oscar.model.storage import MinIOProvider
from oscar.supervisor.moves import Moves
from oscar.supervisor.order import Keys, Order
from oscar.supervisor.plan import Plan, function_config, is_own


def order_of(job_id: str, service: Service, planned: Plan | None, own: MinIOProvider) -> Order:
    """What an order says of the service and its payload; the rest is the engine's.

    Args:
        job_id: of the run's job.
        service: with the keys of its providers.
        planned: for the pod's folders; None when its payload is wrong.
        own: the own store with the keys of the run's user.
    """
    keys = Keys(own.endpoint, own.access_key, own.secret_key, own.region, own.verify)
    if planned is None:
        return Order(job_id, keys, Moves((), (), (), "", service.log_level))
    moves = planned.moves._replace(files=())
    definition = None if _stays_home(service, moves) else _definition(service)
    return Order(job_id, keys, moves, inline=bool(planned.moves.files), definition=definition)


def config_of(service: Service) -> bytes:
    """The text of `function_config.yaml` in a pod."""
    return function_config(_without_users_secrets(service)).encode()


def _stays_home(service: Service, moves: Moves) -> bool:
    """Whether nothing moves from or to another store than the own one."""
    named = {each.provider for each in moves.downloads if not each.url}
    named |= {each.provider for each in moves.outputs}
    refs = [parse_provider(each) for each in named]
    return all(ref is not None and is_own(service, ref) for ref in refs)


def _definition(service: Service) -> dict[str, object]:
    """The service as staging needs it for its providers: without its script."""
    return _without_users_secrets(service).model_copy(update={"script": ""}).model_dump(mode="json")


def _without_users_secrets(service: Service) -> Service:
    """The secrets of its environment and other clusters stay away."""
    environment = service.environment.model_copy(update={"secrets": {}})
    return without_federation(service).model_copy(update={"environment": environment})

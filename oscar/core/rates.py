"""How often somebody may call: token buckets, one for each user, and one for each address that fails to log in.

Called by `api.deps` for every request. In memory of one server: with several servers each grants the rate.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from oscar.errors import TooManyRequests

_MOST = 10_000
"""Users or addresses that are remembered; who called longest ago is forgotten first, and so has a full bucket."""


class Rate:
    """`rate` calls a second in the long run, `burst` at once."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Grant that rate; 0 grants everything.

        Args:
            rate: calls a second.
            burst: calls that may come at once after a pause, at least 1.
            clock: seconds.
        """
        self._rate = rate
        self._burst = float(max(1, burst))
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, who: str, what: str) -> None:
        """Refuse if the bucket is empty; takes nothing.

        Raises:
            TooManyRequests: with `Retry-After`.
        """
        if self._rate > 0 and (left := self._left(who)) < 1:
            wait = math.ceil((1 - left) / self._rate)
            raise TooManyRequests(what, fix=f"try again in {wait} s", headers={"Retry-After": str(wait)})

    def take(self, who: str) -> None:
        """Take one call out of the bucket."""
        if self._rate > 0:
            self._buckets[who] = (max(0.0, self._left(who) - 1), self._clock())
            self._buckets.move_to_end(who)
            if len(self._buckets) > _MOST:
                self._buckets.popitem(last=False)

    def _left(self, who: str) -> float:
        tokens, at = self._buckets.get(who, (self._burst, self._clock()))
        return min(self._burst, tokens + (self._clock() - at) * self._rate)

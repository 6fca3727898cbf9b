"""What warm workers are, whoever runs them: the ports by which `crew` starts, uses and ends them.

Implemented by `compute.local.workers` (sandboxes of this machine) and `compute.kubernetes.sync` (pods).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from oscar.errors import OscarError


class Unfit(Exception):
    """Workers of this kind can't work here: the employer makes others from now on."""


class Makings(Protocol):
    """What a worker is made of; equal ones make workers that can stand in for one another."""

    @property
    def image(self) -> str:
        """The image to have before a worker starts."""


class Hand(Protocol):
    """A worker: `start` first, `stop` in the end whatever happened between, also after a failed `start`."""

    @property
    def name(self) -> str:
        """For logs."""

    @property
    def dead(self) -> bool:
        """Whether it has ended by itself."""

    async def start(self, *, wait: float) -> None:
        """Have it take requests, within so many seconds.

        Raises:
            Unfit: see there.
            EngineError, ImageError: it did not start.
        """

    def when_dead(self, tell: Callable[[str], None]) -> None:
        """Have `tell` called with the reason when it ends by itself; never after `stop`."""

    def abort(self, error: OscarError) -> None:
        """Have a request that is under way fail with that error, and all later ones."""

    async def stop(self) -> None:
        """End it with all that runs in it, and remove all trace of it.

        Raises:
            EngineError: the engine could not do it.
        """

    def tidy(self) -> bool | None:
        """Clean it for the next request: done, impossible, or None when `tidy_all` is needed."""

    async def tidy_all(self) -> bool:
        """The same, however much there is to do."""


K = TypeVar("K", bound=Makings)
W = TypeVar("W", bound=Hand)
K_contra = TypeVar("K_contra", bound=Makings, contravariant=True)
W_co = TypeVar("W_co", bound=Hand, covariant=True)


class Employer(Protocol[K_contra, W_co]):
    """An engine as far as warm workers need it."""

    async def ensure_image(self, image: str) -> None:
        """Have the image at hand, if that is the engine's own business.

        Raises:
            ImageError: with the engine's own words.
        """

    def hire(self, kit: K_contra, name: str) -> W_co:
        """A worker that is yet to be started."""

    def unfit(self) -> None:
        """A worker was `Unfit`: make others."""

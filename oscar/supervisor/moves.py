"""What is moved around a run: which objects are fetched, which files written, where results go.

Made by `plan`, carried out by `stage`. Apart from `plan`, because staging containers (`pod`) are given their moves and
start without the model of a service. Named tuples here and in all that they load: dataclasses take longer to make than
a staging container has to do. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Download(NamedTuple):
    """An object to fetch; `name` is its path below the input folder."""

    provider: str
    bucket: str
    key: str
    name: str
    url: str = ""
    """Where the delegating cluster lets it be read without keys; else it comes from the provider."""

    def __repr__(self) -> str:
        return f"Download({self.provider} {self.bucket}/{self.key})"


class InputFile(NamedTuple):
    """A file to write; `path` is relative to the work folder."""

    path: str
    content: bytes

    def __repr__(self) -> str:
        return f"InputFile({self.path})"


class Output(NamedTuple):
    """A place for results; `folder` is below the bucket, without slashes at its ends.

    The bucket is the space for Onedata, the scope for Rucio, and empty for WebDAV, as in `model.record.Record`.
    """

    provider: str
    bucket: str
    folder: str
    prefixes: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()

    def takes(self, name: str) -> bool:
        """Whether a file belongs here: any of the prefixes (if given) and any of the suffixes (if given)."""
        return (not self.prefixes or name.startswith(self.prefixes)) and (
            not self.suffixes or name.endswith(self.suffixes)
        )

    def key(self, name: str) -> str:
        """The key of a file with that path below the output folder."""
        return f"{self.folder}/{name}" if self.folder else name


class Moves(NamedTuple):
    """All that is moved for one run."""

    downloads: tuple[Download, ...]
    files: tuple[InputFile, ...]
    outputs: tuple[Output, ...]
    work: str
    """Where the script sees the work folder."""
    log_level: str

    def targets(self, names: Iterable[str]) -> list[tuple[str, str, str, str]]:
        """Where files go.

        Args:
            names: paths below the output folder.

        Returns:
            For each file and each output that takes it: name, provider, bucket, key; each target once.
        """
        found = {
            (output.provider, output.bucket, output.key(name)): name
            for name in names
            for output in self.outputs
            if output.takes(name)
        }
        return [(name, *target) for target, name in found.items()]


def event_file(job_id: str, content: bytes) -> InputFile:
    """The input file of an event that has its content in itself."""
    import uuid  # slow to load, and most events hold no file

    # Made from the job's id: a stage-in that goes on after a crash must not leave two of them.
    return InputFile(f"in/event-file-{uuid.uuid5(uuid.NAMESPACE_OID, job_id)}", content)

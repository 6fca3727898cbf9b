"""Where a service's files come from and go to: storage providers, `input`, `output` and `mount` blocks.

Called by `model.service` (validation), the supervisor (which store a path means) and `core.storage`. Field
names are those of `types.StorageProviders` and `types.StorageIOConfig` in the API of OSCAR 4.1.2. Pure.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, field_validator

from oscar.model.fields import Model, Name, Seconds, Text, refuse
from oscar.model.provider import OWN_STORE, ProviderRef, ProviderType, parse_provider


class MinIOProvider(Model):
    """A MinIO or any other S3 server by its address."""

    endpoint: Name = ""
    region: Name = ""
    access_key: Text = Field(default="", repr=False)
    secret_key: Text = Field(default="", repr=False)
    verify: bool = True
    """Whether its TLS certificate is checked."""


class S3Provider(Model):
    """Amazon S3."""

    access_key: Text = Field(default="", repr=False)
    secret_key: Text = Field(default="", repr=False)
    region: Name = ""


class OnedataProvider(Model):
    """A space of Onedata, reached by its Oneprovider's CDMI interface."""

    oneprovider_host: Name = ""
    token: Text = Field(default="", repr=False)
    space: Name = ""
    verify: bool = True


class WebDavProvider(Model):
    """A WebDAV server such as dCache, with a user and password or a token (a macaroon, an access token).

    `token`, `verify` and `trusted_hosts` are ours.
    """

    hostname: Name = ""
    """Perhaps with a scheme (https if not), a port and a folder."""
    login: Text = ""
    password: Text = Field(default="", repr=False)
    token: Text = Field(default="", repr=False)
    verify: bool = True
    trusted_hosts: list[Name] = []
    """Other hosts that get the credentials when the server sends a transfer there."""


class RucioProvider(Model):
    """A Rucio server with the token that gives access to it; `scope`, `lifetime` and `verify` are ours."""

    host: Name = ""
    auth_host: Name = ""
    account: Name = ""
    rse: Name = ""
    refresh_token: Text = Field(default="", repr=False)
    oidc_audience: Name = ""
    token_endpoint: Name = ""
    scope: Name = ""
    """Of what is written; the account if empty, as in OSCAR."""
    lifetime: Seconds = 0.0
    """Seconds that written files are kept; 0 for no end."""
    verify: bool = True


AnyProvider = MinIOProvider | S3Provider | OnedataProvider | WebDavProvider | RucioProvider


class StorageProviders(Model):
    """All providers that a service may name, by type and id."""

    minio: dict[str, MinIOProvider] = {}
    s3: dict[str, S3Provider] = {}
    onedata: dict[str, OnedataProvider] = {}
    webdav: dict[str, WebDavProvider] = {}
    rucio: dict[str, RucioProvider] = {}

    def get(self, ref: ProviderRef) -> AnyProvider | None:
        """The provider of that type and id, None when it is not defined."""
        match ref.type:
            case ProviderType.MINIO:
                return self.minio.get(ref.id)
            case ProviderType.S3:
                return self.s3.get(ref.id)
            case ProviderType.ONEDATA:
                return self.onedata.get(ref.id)
            case ProviderType.WEBDAV:
                return self.webdav.get(ref.id)
            case ProviderType.RUCIO:
                return self.rucio.get(ref.id)


def clean_path(path: str) -> str:
    """A storage path without surrounding spaces and slashes and without doubled slashes.

    Raises:
        PydanticCustomError: nothing is left, or it climbs with `.` or `..`.
    """
    path = re.sub(r"/{2,}", "/", path.strip(" \t\r\n/"))
    if not path:
        raise refuse("the path is empty", fix='Write a bucket and a folder, such as "my-bucket/in".')
    if any(part in {".", ".."} for part in path.split("/")) or "\x00" in path:
        raise refuse(
            'the path contains "." or ".." as a folder', fix="Write the path from the bucket downwards."
        )
    return path


def clean_provider(text: str) -> str:
    """A provider string with its type in lower case and its id written out.

    Raises:
        PydanticCustomError: the type is unknown.
    """
    ref = parse_provider(text)
    if ref is None:
        kinds = ", ".join(ProviderType)
        raise refuse(
            f'the storage provider "{text.strip()}" is of an unknown type'
            if text.strip()
            else "no storage provider",
            fix=f'Write "type" or "type.id" with one of these types: {kinds}.',
        )
    return str(ref)


_MOUNT_OPTIONS = re.compile(r"[A-Za-z0-9\-_.:=,/ ]*")


class StorageIOConfig(Model):
    """One place where files come from or go to.

    `path` starts with the bucket for MinIO and S3. `prefix` and `suffix` choose which outputs are stored
    there: any of the prefixes and any of the suffixes. `options` are flags for a mount.
    """

    storage_provider: Annotated[Text, AfterValidator(clean_provider)] = str(OWN_STORE)
    path: Annotated[Text, AfterValidator(clean_path)]
    suffix: list[Text] = []
    prefix: list[Text] = []
    options: Text = ""

    @field_validator("options")
    @classmethod
    def _plain_options(cls, value: str) -> str:
        if not _MOUNT_OPTIONS.fullmatch(value):
            raise refuse(
                "the mount options contain a character that is not allowed",
                fix="Use letters, digits, spaces and - _ . : = , / only.",
            )
        return value

    @property
    def provider(self) -> ProviderRef:
        """The provider string taken apart."""
        ref = parse_provider(self.storage_provider)
        assert ref is not None, "validated"  # noqa: S101 - narrows the type; the validator has refused all else
        return ref

    @property
    def bucket(self) -> str:
        """The first part of the path: the bucket of MinIO and S3."""
        return self.path.partition("/")[0]

    @property
    def folder(self) -> str:
        """The path below the bucket, without slashes at its ends; empty for the bucket itself."""
        return self.path.partition("/")[2]

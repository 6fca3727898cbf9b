"""What a service says about parts that outlive a job: scale, exposed ports, KServe, managed volume.

Called by `model.service`. Field names are those of `types.Expose`, `types.Kserve` and
`types.ServiceVolumeConfig` in the API of OSCAR 4.1.2. Pure.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from oscar.model.fields import (
    CpuQuantity,
    MemoryQuantity,
    Model,
    Name,
    Text,
    as_list,
    as_text,
    fold_keys,
    refuse,
)

Port = Annotated[int, Field(ge=1, le=65535)]


class Synchronous(Model):
    """How many warm workers answer synchronous calls: 0/0 means none while idle, as many as needed."""

    min_scale: int = Field(default=0, ge=0)
    max_scale: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Synchronous:
        if self.max_scale and self.min_scale > self.max_scale:
            raise refuse(
                f"min_scale {self.min_scale} is above max_scale {self.max_scale}",
                field="min_scale",
                fix="Lower min_scale, or set max_scale to 0 for no limit.",
            )
        return self


def _ports(value: Any) -> list[Any]:
    # 0 is what OSCAR's own answers carry for "no port".
    return [port for port in as_list(value) if port not in (0, "0", "")]


def _choice(*allowed: str) -> BeforeValidator:
    def check(value: Any) -> str:
        text = as_text(value).strip().lower() or allowed[0]
        if text not in allowed:
            raise refuse(f'"{text}" is not allowed here', fix=f"Use one of: {', '.join(allowed)}.")
        return text

    return BeforeValidator(check)


class Expose(Model):
    """A long-running web server behind the platform; active when a port is given."""

    api_port: Annotated[list[Port], BeforeValidator(_ports)] = []
    nodePort: Annotated[list[Port], BeforeValidator(_ports)] = []  # noqa: N815 - its name in the API
    min_scale: int = Field(default=1, ge=0)
    max_scale: int = Field(default=10, ge=0)
    cpu_threshold: int = Field(default=80, ge=0, le=100)
    default_command: bool = False
    """True runs the image's own command instead of the script."""
    rewrite_target: bool = False
    """True keeps the service's prefix in the path that the server sees."""
    set_auth: bool = False
    auth_type: Annotated[Literal["basic", "forward"], _choice("basic", "forward")] = "basic"
    health_path: Name = "/"
    probe_mode: Annotated[Literal["legacy", "direct"], _choice("legacy", "direct")] = "legacy"

    @field_validator("min_scale", "max_scale", "cpu_threshold")
    @classmethod
    def _zero_is_default(cls, value: int, info: ValidationInfo) -> int:
        return value or int(cls.model_fields[str(info.field_name)].default)

    @field_validator("health_path")
    @classmethod
    def _absolute(cls, path: str) -> str:
        return path if path.startswith("/") else f"/{path}"

    @model_validator(mode="after")
    def _ordered(self) -> Expose:
        if self.min_scale > self.max_scale:
            raise refuse(
                f"min_scale {self.min_scale} is above max_scale {self.max_scale}",
                field="min_scale",
                fix="Lower min_scale or raise max_scale.",
            )
        return self

    @property
    def active(self) -> bool:
        """Whether the service is exposed at all."""
        return bool(self.api_port)


class KserveInference(Model):
    """A model served by an InferenceService."""

    model_format: Name = ""
    runtime: Name = ""


class KserveLLMInference(Model):
    """A language model served by an LLMInferenceService."""

    runtime_image: Name = ""


class Kserve(Model):
    """A model server deployed by KServe beside the service."""

    type: Annotated[Literal["inference", "llm_inference"], _choice("inference", "llm_inference")] = (
        "inference"
    )
    storage_uri: Name = ""
    inference: KserveInference | None = None
    llm_inference: KserveLLMInference | None = None
    api_version: Annotated[Literal["v1", "v2"], _choice("v1", "v2")] = "v1"
    min_scale: int = Field(default=0, ge=0, validate_default=True)
    max_scale: int = Field(default=1, ge=0, validate_default=True)
    cpu: CpuQuantity = "0.2"
    memory: MemoryQuantity = "256Mi"
    args: list[Text] = []
    env: dict[str, Text] = {}
    enable_gpu: bool = False
    set_auth: bool = True

    @model_validator(mode="before")
    @classmethod
    def _settle(cls, data: Any) -> Any:
        data = fold_keys(cls, data)
        if not isinstance(data, Mapping):
            return data
        data = dict(data)
        inference = data.get("inference")
        # OSCAR 4.1 had api_version inside `inference` for a while.
        if isinstance(inference, Mapping) and "api_version" in inference:
            data.setdefault("api_version", inference["api_version"])
        return data

    @field_validator("min_scale", "max_scale")
    @classmethod
    def _scale(cls, value: int, info: ValidationInfo) -> int:
        # A language model keeps one replica; the largest number is never below the least.
        if info.field_name == "max_scale":
            least: int = info.data.get("min_scale", 0)
            return max(value, least, 1)
        return max(value, 1) if info.data.get("type") == "llm_inference" else value

    @model_validator(mode="after")
    def _complete(self) -> Kserve:
        if not self.storage_uri:
            raise refuse(
                "the address of the model is missing", field="storage_uri", fix="Write where the model lies."
            )
        if self.type == "inference":
            if self.llm_inference:
                raise refuse("llm_inference belongs to the type llm_inference", field="llm_inference")
            if not (self.inference and self.inference.model_format):
                raise refuse(
                    "the format of the model is missing",
                    field="inference.model_format",
                    fix="Write onnx, sklearn, xgboost, pytorch, tensorflow, triton or huggingface.",
                )
        elif self.inference:
            raise refuse("inference belongs to the type inference", field="inference")
        return self


_VOLUME_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_KEPT_PATHS = ("/oscar/bin", "/oscar/config", "/oscar/work", "/dev", "/proc", "/sys")
_AWKWARD = re.compile(r"[:,\x00-\x1f\x7f]")
"""What engines would read as something else in the name of a mounted folder."""


class ServiceVolume(Model):
    """A managed volume: with `size` it is created, named as the service by default; without, attached."""

    name: Name = ""
    size: MemoryQuantity = ""
    mount_path: Name = ""
    lifecycle_policy: Annotated[Literal["", "delete", "retain"], _choice("", "delete", "retain")] = ""

    @field_validator("name")
    @classmethod
    def _label(cls, name: str) -> str:
        if name and not _VOLUME_NAME.fullmatch(name):
            raise refuse(
                f'"{name}" is not a name for a volume',
                fix='Use lower-case letters, digits and "-", with a letter or digit at both ends.',
            )
        return name

    @field_validator("mount_path")
    @classmethod
    def _place(cls, path: str) -> str:
        if not path.startswith("/"):
            raise refuse(f'"{path}" is not an absolute path', fix='Write a path such as "/data".')
        plain = posixpath.normpath("/" + path.lstrip("/"))
        if _AWKWARD.search(plain):
            raise refuse(
                f"{path!r} can't be a folder to mount at",
                fix='Use a path without ":", "," and control characters.',
            )
        if plain in {"/", "/oscar"} or any(
            plain == kept or plain.startswith(f"{kept}/") for kept in _KEPT_PATHS
        ):
            raise refuse(f'"{path}" is used by the platform', fix='Write a path such as "/data".')
        return plain

    @model_validator(mode="after")
    def _created_or_attached(self) -> ServiceVolume:
        if not self.mount_path:
            raise refuse("is required", field="mount_path", fix='Write a path such as "/data".')
        if not self.size and not self.name:
            raise refuse(
                "a volume needs a size to be created, or the name of one that exists",
                field="name",
                fix="Add size or name.",
            )
        if not self.size and self.lifecycle_policy:
            raise refuse(
                "a lifecycle policy is for volumes that the service creates",
                field="lifecycle_policy",
                fix="Add size, or remove lifecycle_policy.",
            )
        return self

    @property
    def kept(self) -> bool:
        """Whether the volume outlives the service: attached ones always, created ones with `retain`."""
        return not self.size or self.lifecycle_policy == "retain"

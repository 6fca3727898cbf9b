"""A program's environment on its way into a sandbox, past the programs that make the sandbox.

Values may be secrets, so they never travel in arguments: they go in the environment of the engine's command
line tool. But such a tool reads variables itself (`LD_PRELOAD`, `CONTAINERS_CONF`, `DOCKER_HOST`), with this
server's rights, so those of a user's service take another way. Called by `containers` and `processes`. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from oscar.errors import InvalidField

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ALIAS = "OSCAR_ALIAS_"

# Read by the dynamic linker and the C library (ld.so(8), environ(7)), the Go run time, podman, docker,
# conmon, OCI runtimes and what they call.
_STEERING = re.compile(
    r"LD_|GLIBC_|MALLOC_|(GCONV_PATH|GETCONF_DIR|HOSTALIASES|LOCALDOMAIN|LOCPATH|NIS_PATH|NLSPATH|RES_OPTIONS"
    r"|RESOLV_HOST_CONF|TZDIR|GODEBUG|GOGC|GOMEMLIMIT|GOMAXPROCS|GOTRACEBACK|PATH|HOME|TMPDIR|TMP|TEMP|ENV|KUBECONFIG"
    r"|NOTIFY_SOCKET|CNI)$|XDG_|DBUS_|SSL_CERT_|OPENSSL_|CONTAINERS?_|_CONTAINERS_|PODMAN_|LIBPOD_|BUILDAH_|DOCKER_"
    r"|BUILDKIT_|REGISTRY_|STORAGE_|NETAVARK_|CNI_|LISTEN_|OTEL_|OCI_|CRUN_|_LIBCONTAINER_|BASH_"
)


def steers(name: str) -> bool:
    """Whether tools that make sandboxes read a variable of that name themselves."""
    return bool(_STEERING.match(name))


def divide(env: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """What a tool may have in its own environment, and what steers it."""
    plain = {name: value for name, value in env.items() if not steers(name)}
    return plain, {name: value for name, value in env.items() if steers(name)}


def env_file(env: Mapping[str, str]) -> str:
    """The variables as an `--env-file` of podman and docker: `NAME=value` lines, nothing quoted.

    Raises:
        InvalidField: a value that the versions of these tools read differently.
    """
    for name, value in env.items():
        if re.search(r"[\r\n'\"\\#$]|^\s|\s$", value):
            raise InvalidField(
                f"the variable {name} has a value with quotes, line breaks or the like",
                field=f"environment.{name}",
                fix="Give the variable another name: this one is read by container engines.",
            )
    return "".join(f"{name}={value}\n" for name, value in env.items())


def aliased(env: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The environment with what steers tools under other names, and those: {name: alias}."""
    passed, steering = divide(env)
    aliases: dict[str, str] = {}
    for name, value in steering.items():
        aliases[name] = f"{_ALIAS}{len(aliases)}"
        passed[aliases[name]] = value
    return passed, aliases


def restoring(argv: tuple[str, ...], aliases: Mapping[str, str]) -> tuple[str, ...]:
    """The command by way of `/bin/sh`, which gives the variables their own names; no value appears in it."""
    words = [
        f"{name}=${alias}; export {name}; unset {alias};"
        for name, alias in aliases.items()
        if _IDENTIFIER.fullmatch(name)
    ]
    return ("/bin/sh", "-c", " ".join([*words, 'exec "$@"']), "sh", *argv) if words else argv

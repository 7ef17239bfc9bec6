"""What not every runtime can do, and those who cannot do not say.

Source: containerd's ``core/runtime/v2/task_manager.go`` (2.x), ``validateRuntimeFeatures``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anyio

from taskd.errors import TaskdError, Unknown
from taskd.runtime.generation import Binary
from taskd.runtime.types import CreateOptions
from taskd.types import TypedValue

__all__ = [
    "needs_idmapped_mounts",
    "refuse_without_idmapped_mounts",
    "require_idmapped_mounts",
]

_FEATURES = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


def needs_idmapped_mounts(spec: bytes) -> bool:
    """Whether a specification has mounts whose owners are to be mapped.

    What is no specification needs nothing: its shim will say so.
    """
    try:
        document = json.loads(spec)
    except ValueError:
        return False
    return any(
        mount.get("uidMappings") is not None
        or mount.get("gidMappings") is not None
        or not {"idmap", "ridmap"}.isdisjoint(mount.get("options") or ())
        for mount in _mounts(document)
    )


def _mounts(document: Any) -> Iterator[dict[str, Any]]:
    mounts = document.get("mounts") if isinstance(document, dict) else None
    for mount in mounts if isinstance(mounts, list) else ():
        if isinstance(mount, dict) and isinstance(mount.get("options") or [], list):
            yield mount


async def require_idmapped_mounts(binary: Binary, options: CreateOptions, seconds: float) -> None:
    """Raise `Unknown` if a shim's runtime has none, or does not say so within so many seconds.

    An OCI runtime that knows nothing of them would mount without mapping, and not say so.
    """
    try:
        with anyio.fail_after(seconds):
            refuse_without_idmapped_mounts(await binary.features(options.options))
    except TimeoutError:
        words = f"runtime info: no answer in {seconds} s"
        raise Unknown(f"failed to validate OCI runtime features: {words}") from None
    except TaskdError as exc:
        raise exc.within("failed to validate OCI runtime features") from exc


def refuse_without_idmapped_mounts(features: TypedValue | None) -> None:
    """Raise `Unknown` if a runtime with such features would mount without mapping.

    A runtime that is none of the OCI's may have features of another type, and knows what it does.
    """
    if features is None:
        raise Unknown("unmarshal runtime features: the shim does not tell them")
    if features.type_url != _FEATURES:
        return
    found: Any
    try:
        found = json.loads(features.value)
        for name in ("linux", "mountExtensions", "idmap"):
            found = None if found is None else found.get(name)
        enabled = None if found is None else found.get("enabled")
    except (AttributeError, ValueError) as exc:
        raise Unknown(f"unmarshal runtime features: {exc}") from exc
    command = "in `features` command"
    if found is None:
        words = f"missing `mountExtensions.idmap` entry {command}"
        raise Unknown(f"idmap mounts not supported: {words}")
    if enabled is not True:
        words = f"entry `mountExtensions.idmap.Enabled` {command} not present or disabled"
        raise Unknown(f"idmap mounts not supported: {words}")

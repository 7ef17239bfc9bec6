"""What the author of a shim with sandboxes writes: a subclass of `Sandbox`.

What only a process that serves has need of is imported where it is used: see `taskd.shim.command`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from taskd.errors import Unknown, words
from taskd.shim import leftovers
from taskd.shim.document import document

TYPE_CHECKING = False  # as of `typing`, which a shim's `delete` does without
if TYPE_CHECKING:
    from typing import Any

    import betterproto2

    from taskd.shim.reaper import Reaper
    from taskd.types import TypedValue

__all__ = ["Sandbox", "Wanted"]


class Wanted:
    """What the client has said of a sandbox."""

    def __init__(
        self,
        options: TypedValue | None = None,
        netns: str = "",
        annotations: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.options = options
        """The runtime's own options."""
        self.netns = netns
        """Path of a network namespace, or empty."""
        self.annotations = annotations


class Sandbox:
    """What the containers of one shim process share: a VM, a pod's namespaces, or nothing more.

    As it stands it is the process alone, in which containers are made and ended as without one. A
    subclass says what else there is. What a method raises is the answer to the call, as with
    `Container`; `Container.sandbox` is how a container finds the one that it is in.
    """

    def __init__(
        self,
        id: str,  # noqa: A002
        namespace: str,
        bundle: Path,
        reaper: Reaper,
        wanted: Wanted,
    ) -> None:
        import asyncio

        self.id = id
        self.namespace = namespace
        self.bundle = bundle
        """Folder with ``config.json``, ``rootfs`` (mounted), and ``work``, which is on disk."""
        self.reaper = reaper
        self.wanted = wanted
        self.pid = 0
        """Of what stands for it, once it has begun."""
        self.created_at = time.time_ns()
        """As all times here, in nanoseconds since the epoch."""
        self.begun = False
        self.ending = False
        """It takes no more containers."""
        self.exit_status = 0
        self.exited_at = 0
        self.ended = asyncio.Event()
        self.lock = asyncio.Lock()
        # Who writes down what becomes of it.
        self.noted: Callable[[], None] = _nothing

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The specification that the client gave, or nothing. Raises `Unknown` if it is no JSON."""
        try:
            text = (self.bundle / "config.json").read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as exc:
            raise Unknown(f"reading the specification: {words(exc)}") from exc
        return document(text or b"{}", "the specification")

    # --- what an author writes ------------------------------------------------------------

    async def create(self) -> None:
        """Prepare it. By default there is nothing to prepare."""

    async def start(self) -> int:
        """Let it begin; the pid of what stands for it, by default this shim."""
        return os.getpid()

    async def stop(self, seconds: float) -> None:
        """End it, within that time; its containers have been ended. By default nothing."""

    async def delete(self) -> None:
        """Remove what there is of one that has stopped. By default nothing."""

    async def adopt(self) -> None:
        """Go on with it in another process, where its shim has died or is renewed.

        It is as it was, but that `pid` is this shim's if it was that one's. What is raised says why
        it cannot be gone on with: then its containers end, too.
        """

    @classmethod
    def survives(cls) -> bool:
        """Whether it may go on in another process: if it is the process alone, without a `create`
        or `start` of its own, or `adopt` is overridden.
        """
        alone = cls.create is Sandbox.create and cls.start is Sandbox.start
        return alone or cls.adopt is not Sandbox.adopt

    async def stats(self) -> betterproto2.Message | None:
        """Usage of resources, in one of containerd's metric messages; by default nothing."""
        return None

    @property
    def info(self) -> Mapping[str, str]:
        """More to tell to those who ask for it. By default nothing."""
        return {}

    @property
    def platform(self) -> tuple[str, str]:
        """Operating system and architecture, in Go's names, of what can run in it."""
        from taskd.platforms import here

        return here()

    @classmethod
    def clean_up(cls, id: str, namespace: str, bundle: Path) -> None:  # noqa: A002
        """Remove what a shim that was killed has left, in a process of its own.

        Its containers have been cleaned up after. By default: kill what was noted as started.
        """
        leftovers.end(bundle)

    # --- what helps an author -------------------------------------------------------------

    def exited(self, status: int = 0) -> None:
        """Tell all who wait that it has ended, which it may do by itself."""
        if not self.ended.is_set():
            self.ending = True
            self.exit_status, self.exited_at = status, time.time_ns()
            self.ended.set()
            self.noted()


def _nothing() -> None:
    """Nobody has to know."""

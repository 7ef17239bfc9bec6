"""Plays one scenario on a real containerd and on taskd at once, and compares the transcripts."""

from __future__ import annotations

import os
import shutil
import sysconfig
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import anyio
from harness.containers import make_rootfs
from harness.daemons import LATE_GC, Containerd, Daemon, Taskd
from harness.generations import Generation, criu, own_shim
from harness.leaks import left_behind
from parity.known import Known, without
from parity.recorder import Recorder
from parity.scenarios import Scenario

__all__ = ["Comparison", "Pairs", "compare"]

EVENTS_SECONDS = 5.0
"""For events that are still on their way when the last call has been answered."""


@dataclass(frozen=True)
class Comparison:
    """How two transcripts compare."""

    differences: list[str]
    """What differs and should not."""
    known: list[Known]
    """Why they differ otherwise, if they do."""

    def __str__(self) -> str:
        return "different" if self.differences else "known" if self.known else "same"


@dataclass(frozen=True)
class Pair:
    """A containerd, and a taskd that has its shims."""

    containerd: Daemon
    taskd: Daemon


class Pairs:
    """Daemons to play on: a pair for each generation, started when first asked for."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._pairs: dict[tuple[Generation, bool], Pair] = {}

    def __enter__(self) -> Pairs:
        self.folder = Path(self._stack.enter_context(_temporary_folder()))
        self.rootfs = make_rootfs(self.folder / "rootfs")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def shared(self, generation: Generation, controllers: bool) -> Pair:
        controllers &= generation.name == "2"
        if (generation, controllers) not in self._pairs:
            pair = self._stack.enter_context(self.alone(generation, controllers))
            self._pairs[generation, controllers] = pair
        return self._pairs[generation, controllers]

    @contextmanager
    def alone(self, generation: Generation, controllers: bool = False) -> Iterator[Pair]:
        """A pair that nobody else has used."""
        binaries = generation.binaries()
        path = f"{binaries}:" if binaries else ""
        # containerd finds our own shims beside its.
        path += f"{criu()}:{os.environ['PATH']}:{sysconfig.get_path('scripts')}"
        with _temporary_folder() as folder, ExitStack() as stack:
            containerd = Containerd(Path(folder, "c"), path=path, cri=controllers)
            stack.enter_context(containerd)
            if generation.own_shim:
                path = f"{own_shim(Path(folder, 'shims'))}:{path}"
            # Only our own shims gain by a helper, which takes time that each pair would wait for.
            settings = f"{LATE_GC}[shims]\nwarm = {str(generation.own_shim).lower()}\n"
            options = ("--log-level", "debug")
            taskd = stack.enter_context(
                Taskd(Path(folder, "t"), *options, path=path, settings=settings)
            )
            yield Pair(containerd, taskd)


@contextmanager
def _temporary_folder() -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="parity-")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


async def compare(scenario: Scenario, pairs: Pairs, generation: Generation) -> Comparison:
    """Play `scenario` on both."""
    with ExitStack() as stack:
        pair = (
            stack.enter_context(pairs.alone(generation))
            if scenario.alone
            else pairs.shared(generation, scenario.controllers)
        )
        folder = Path(stack.enter_context(_temporary_folder()))
        name = f"parity-{uuid.uuid4().hex[:12]}"
        recorders = []
        for daemon, letter in ((pair.containerd, "c"), (pair.taskd, "t")):
            own = folder / letter
            own.mkdir()
            recorder = Recorder(daemon, f"{name}-{letter}", pairs.rootfs, own)
            if generation.name == "2":
                recorder.sandbox_runtime = "io.taskd.oci.v1"
            recorders.append(recorder)
        return await _played(scenario, generation, *recorders)


async def _played(
    scenario: Scenario, generation: Generation, theirs: Recorder, ours: Recorder
) -> Comparison:
    async def play(recorder: Recorder) -> None:
        try:
            await scenario.play(recorder)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await recorder.clean_up()
            raise

    async with theirs, ours:
        async with anyio.create_task_group() as group:
            group.start_soon(play, theirs)
            group.start_soon(play, ours)
        with anyio.move_on_after(EVENTS_SECONDS):
            while _compared(theirs, ours, scenario, generation).differences:
                await anyio.sleep(0.05)
        await anyio.sleep(0.05)  # for one too many
        found = _compared(theirs, ours, scenario, generation)
        await theirs.clean_up()
        await ours.clean_up()
    # What containerd leaves is swept away in silence.
    left_behind(theirs.daemon, theirs.namespace, seconds=1)
    # One that hangs has the time for cleaning up: five seconds, or what `harness.pace` says.
    left = left_behind(ours.daemon, ours.namespace, seconds=15)
    return replace(
        found, differences=[*found.differences, *(f"left behind: {each}" for each in left)]
    )


def _compared(
    containerd: Recorder, taskd: Recorder, scenario: Scenario, generation: Generation
) -> Comparison:
    theirs, ours = containerd.transcript(), taskd.transcript()
    if theirs == ours:
        return Comparison([], [])
    (theirs, known), (ours, more) = (
        without(each, scenario.name, generation) for each in (theirs, ours)
    )
    differences = [
        f"--- containerd\n{their}\n+++ taskd\n{our}\n"
        for their, our in zip_longest(theirs, ours, fillvalue="(nothing)")
        if their != our
    ]
    return Comparison(differences, sorted(known | more, key=str))

"""``io.taskd.wasm.v1``: a container's program is a WebAssembly module."""

import json
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from taskd.errors import FailedPrecondition, NotFound
from taskd.shim import Container, Process, run

ENGINE = Path(__file__).with_name("engine.py")


class Wasm(Container):
    async def start(self, init: Process) -> int:
        return await self.exec(init)

    async def exec(self, process: Process) -> int:
        if find_spec("wasmtime") is None:
            raise FailedPrecondition("no wasmtime: pip install 'taskd-containers[wasm]'")
        try:
            module = self.open_file(process.args[0])
        except OSError as exc:
            raise NotFound(f"module {process.args[0]}") from exc
        files = [str(self.rootfs), f"/proc/self/fd/{module}"]
        command = [sys.executable, "-I", str(ENGINE), *files]
        env = {"SPEC": json.dumps(self.spec | {"process": process.spec})}
        # Python makes an exception of SIGINT while it still starts, and of that the status 1: the
        # engine lets it in when it has said that it ends the process.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return await self.spawn(command, process, env=env, cwd="/", pass_fds=[module])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(module)


def main() -> NoReturn:
    run(Wasm, "io.taskd.wasm.v1")

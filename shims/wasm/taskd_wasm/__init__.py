"""``io.taskd.wasm.v1``: a container's program is a WebAssembly module."""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from signal import SIGINT
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
        command = [sys.executable, "-I", str(ENGINE), str(self.rootfs), f"/proc/self/fd/{module}"]
        env = {"SPEC": json.dumps(self.spec | {"process": process.spec})}
        try:
            # Python would make SIGINT an exception while it starts, and of that the status 1.
            return await self.spawn(
                command, process, env=env, cwd="/", pass_fds=[module], blocked=[SIGINT]
            )
        finally:
            os.close(module)


def main() -> NoReturn:
    run(Wasm, "io.taskd.wasm.v1")

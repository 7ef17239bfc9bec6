"""``io.taskd.wasm.v1``: a container's program is a WebAssembly module."""

import json
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
        root, name = self.rootfs.resolve(), process.args[0]
        module = (root / name.lstrip("/")).resolve()
        if not module.is_file() or not module.is_relative_to(root):
            raise NotFound(f"module {name}")
        command = [sys.executable, "-I", str(ENGINE), str(root), str(module)]
        spec = json.dumps(self.spec | {"process": process.spec})
        return await self.spawn(command, process, env={"SPEC": spec}, cwd="/")


def main() -> NoReturn:
    run(Wasm, "io.taskd.wasm.v1")

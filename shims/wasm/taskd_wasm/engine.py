"""The process of a module: ``python -I engine.py ROOTFS MODULE``, with the OCI spec in SPEC."""

import json
import os
import signal
import sys

from wasmtime import FuncType, Linker, Module, Store, Trap, ValType, WasiConfig, WasmtimeError

rootfs, path = sys.argv[1:]
spec = json.loads(os.environ["SPEC"])
memory = ((spec.get("linux") or {}).get("resources") or {}).get("memory") or {}
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own waits until the module returns
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
wasi = WasiConfig()
wasi.argv = spec["process"]["args"]
wasi.env = [each.partition("=")[::2] for each in spec["process"].get("env") or ()]
wasi.inherit_stdin()
wasi.inherit_stdout()
wasi.inherit_stderr()
wasi.preopen_dir(rootfs, "/", not spec["root"].get("readonly", False))
store = Store()
store.set_limits(memory_size=memory.get("limit", -1))
store.set_wasi(wasi)
linker = Linker(store.engine)
linker.define_wasi()
linker.allow_shadowing = True  # wasmtime's own `proc_exit` takes no status above 125
exits = FuncType([ValType.i32()], [])
leave = ("wasi_snapshot_preview1", "proc_exit", exits, lambda status: os._exit(status & 0xFF))
linker.define_func(*leave)
try:
    linker.define_module(store, "", Module.from_file(store.engine, path))
    linker.get_default(store, "")(store)
except (Trap, WasmtimeError) as exc:
    sys.exit(f"{spec['process']['args'][0]}: {exc}")

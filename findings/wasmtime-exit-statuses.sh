#!/bin/sh
# wasmtime 50.0.1 (Python): a module that ends with proc_exit, as a shim for WebAssembly has to tell its status.
#
# Guess: an ExitTrap has the status as its code, for each of a process's eight bits: WASI's exitcode is 32 bits wide,
# and what a program means by 126 and above (137, "killed", as shells tell it) is its own affair.
# Seen: so it is up to 125. From 126 on there is a WasmtimeError without a code: the module's status cannot be known.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check wasmtime==50.0.1
"$folder/venv/bin/python" - <<'PYTHON'
import sys

from wasmtime import Engine, ExitTrap, Linker, Module, Store, WasiConfig, WasmtimeError

MODULE = """
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start") (call $exit (i32.const %d))))
"""


def ended(status):
    engine = Engine()
    store = Store(engine)
    store.set_wasi(WasiConfig())
    linker = Linker(engine)
    linker.define_wasi()
    instance = linker.instantiate(store, Module(engine, MODULE % status))
    try:
        instance.exports(store)["_start"](store)
    except ExitTrap as trap:
        return trap.code
    except WasmtimeError as error:
        return f"{type(error).__name__} {getattr(error, 'code', 'without a code')}"


found = {status: ended(status) for status in (0, 1, 125, 126, 137, 255)}
for status, seen in found.items():
    print(f"proc_exit({status}):", seen)
none = "WasmtimeError without a code"
sys.exit(found != {0: 0, 1: 1, 125: 125, 126: none, 137: none, 255: none})
PYTHON

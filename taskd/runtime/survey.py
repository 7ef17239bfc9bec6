"""What one daemon leaves on disk for the next one: which bundles there are, and how to find a shim.

Everything here blocks on the disk. Source: containerd's ``runtime/v2/shim_load.go``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from taskd import identifiers
from taskd.errors import InvalidArgument
from taskd.runtime.binary import Bootstrap
from taskd.runtime.bundle import SANDBOX, Bundle

__all__ = ["Note", "note", "survey"]

_BINARY = "shim-binary-path"
_BOOTSTRAP = "bootstrap.json"


def note(bundle: Bundle, binary: Path, bootstrap: Bootstrap) -> None:
    """Write down what a later daemon needs to find this shim again. Raises OSError."""
    # Whoever finds the one finds the other; without the binary, a bundle is half made.
    for name, text in ((_BOOTSTRAP, bootstrap.to_json()), (_BINARY, str(binary))):
        unfinished = bundle.path / f".{name}"
        unfinished.write_text(text)
        unfinished.rename(bundle.path / name)


class Note:
    """What `note` has left in a bundle, or why that cannot be read."""

    def __init__(self, bundle: Bundle) -> None:
        self._binary = _read(bundle.path / _BINARY)
        self._bootstrap = _read(bundle.path / _BOOTSTRAP)
        self.in_sandbox = (bundle.path / SANDBOX).exists()

    def binary(self) -> str:
        """Path of the shim's executable. Raises OSError, ValueError."""
        if isinstance(self._binary, OSError):
            raise self._binary
        return self._binary.decode()

    def bootstrap(self) -> Bootstrap:
        """How to connect to the shim. Raises OSError, ValueError."""
        if isinstance(self._bootstrap, OSError):
            raise self._bootstrap
        return Bootstrap.from_json(self._bootstrap)


def _read(file: Path) -> bytes | OSError:
    try:
        return file.read_bytes()
    except OSError as exc:
        return exc


def survey(state: Path, root: Path) -> list[tuple[Bundle, Note]]:
    """The bundles below `state`, and what is noted in each.

    All is read in one go, as a turn of a thread for each file would take longer than the shims do
    to answer. What is left of bundles that are gone is removed, below `state` and below `root`.
    """
    found = []
    for folder in state.glob("*/*"):
        if folder.is_dir() and not folder.is_symlink():
            try:
                identifiers.validate(folder.parent.name)
                identifiers.validate(folder.name)
            except InvalidArgument:
                if folder.name.startswith("."):
                    # A bundle whose removal was cut short: see Bundle.delete.
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            bundle = Bundle(folder.parent.name, folder.name, folder)
            found.append((bundle, Note(bundle)))
    live = {(bundle.namespace, bundle.id) for bundle, _ in found}
    for folder in root.glob("*/*"):
        if (folder.parent.name, folder.name) not in live:
            shutil.rmtree(folder, ignore_errors=True)  # its bundle went with a reboot
    return found

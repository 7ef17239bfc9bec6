"""A bundle: the folder in which one task lives while it exists.

The layout is containerd's (``runtime/v2/bundle.go``), because shims know it: ``config.json``,
``rootfs/``, the FIFO ``log``, ``work`` (a link to a folder that outlives a reboot), and what the
daemon notes for its own restart: ``shim-binary-path`` and ``bootstrap.json``.

The functions here block on the file system; callers run them in a worker thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from taskd import folders, identifiers
from taskd.errors import AlreadyExists, InvalidArgument
from taskd.mounts import unmount_all
from taskd.runtime.types import Key

__all__ = ["SANDBOX", "Bundle"]

SANDBOX = "sandbox"
"""Name of the file that says in which sandbox a container is."""


class Bundle(NamedTuple):
    namespace: str
    id: str
    path: Path

    @classmethod
    def create(
        cls,
        state: Path,
        root: Path,
        namespace: str,
        id: str,  # noqa: A002
        spec: bytes | None,
        sandbox: str = "",
    ) -> Bundle:
        """Make the bundle of `id` below `state`, its work folder below `root`.

        It says in which `sandbox` the container is, if in any.

        Raises `InvalidArgument` for an invalid id or a spec that is not JSON, `AlreadyExists` if
        there is such a bundle, OSError if the disk refuses; then nothing is left behind.
        """
        try:
            identifiers.validate(id)
        except InvalidArgument as exc:
            raise InvalidArgument(f"invalid task id {id}: {exc}") from None
        group = _remapped_group(spec) if spec is not None else 0
        bundle = cls(namespace, id, state / namespace / id)
        work = root / namespace / id
        _make_parents(bundle.path.parent)
        _make_parents(work.parent)
        if bundle.path.exists():
            raise AlreadyExists(f"mkdir {bundle.path}: file exists")
        # It appears under its name in one step, as it vanishes: there never is half a bundle.
        made = cls(namespace, id, _hidden(bundle.path))
        shutil.rmtree(made.path, ignore_errors=True)
        _mkdir(made.path, 0o700)
        try:
            if group:
                os.chown(made.path, -1, group)
                made.path.chmod(0o710)
            _mkdir(made.rootfs, 0o711)
            try:
                _mkdir(work, 0o711)
            except FileExistsError:
                # What a task of the same name left there is no longer anybody's.
                shutil.rmtree(work)
                _mkdir(work, 0o711)
            made.work.symlink_to(work)
            if spec is not None:
                (made.path / "config.json").write_bytes(spec)
            if sandbox:
                (made.path / SANDBOX).write_text(sandbox)
            made.path.rename(bundle.path)
        except BaseException:
            shutil.rmtree(made.path, ignore_errors=True)
            shutil.rmtree(work, ignore_errors=True)
            raise
        return bundle

    @property
    def key(self) -> Key:
        return Key(self.namespace, self.id)

    @property
    def rootfs(self) -> Path:
        return self.path / "rootfs"

    @property
    def work(self) -> Path:
        """A folder on disk, which outlives a reboot; runtimes keep their logs there."""
        return self.path / "work"

    @property
    def log(self) -> Path:
        """The FIFO into which the shim writes its log."""
        return self.path / "log"

    def delete(self) -> None:
        """Unmount the root filesystem and remove the bundle and its work folder.

        Raises OSError. The bundle vanishes under its name in one step, so that a crash in the
        middle leaves a hidden folder, never half a bundle. Never follows a mount: the rootfs is
        removed by ``rmdir`` alone.
        """
        with contextlib.suppress(FileNotFoundError):
            unmount_all(self.rootfs)
            self.rootfs.rmdir()
        work = None
        with contextlib.suppress(OSError):
            work = self.work.readlink()
        _remove_at_once(self.path)
        if work is not None:
            _remove_at_once(work)


def _mkdir(path: Path, mode: int) -> None:
    path.mkdir(mode)
    path.chmod(mode)


def _make_parents(path: Path) -> None:
    folders.make(path, 0o711)


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}")


def _remove_at_once(path: Path) -> None:
    hidden = _hidden(path)
    try:
        path.rmdir()  # enough for most work folders
    except FileNotFoundError:
        return
    except OSError:
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
        shutil.rmtree(hidden)


def _remapped_group(spec: bytes) -> int:
    """Host id of the container's group 0, or 0 (containerd: ``runtime/v2/bundle_linux.go``)."""
    try:
        document = json.loads(spec)
    except (ValueError, RecursionError) as exc:
        raise InvalidArgument(f"the container's spec is not JSON: {exc}") from None
    linux = document.get("linux") if isinstance(document, dict) else None
    try:
        for mapping in (linux or {}).get("gidMappings") or ():
            if mapping.get("containerID", 0) == 0:
                return int(mapping.get("hostID", 0))
    except (AttributeError, TypeError, ValueError):
        raise InvalidArgument("the container's spec: linux.gidMappings is none") from None
    return 0

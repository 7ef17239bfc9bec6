"""The store's files, in containerd's layout (``content/local/store.go``). All of it blocks.

blobs/sha256/<hex>      what has been committed and verified; never changes
ingest/<hash of key>/   what is being written: data, ref, startedat, updatedat, total
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from taskd import digests
from taskd.errors import InvalidArgument, Unknown

__all__ = ["Files", "explained", "sync_folder"]


class Files:
    def __init__(self, root: Path) -> None:
        """The files below `root`, which is created. Raises OSError if it cannot be."""
        self._blobs = root / "blobs"
        self._ingests = root / "ingest"
        for folder in (self._blobs / "sha256", self._ingests):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_folder(folder.parent)
        sync_folder(root)

    def blob(self, digest: str) -> Path:
        """Where the blob is, if there is one. Raises `InvalidArgument` for what is no digest."""
        digests.validate(digest)
        algorithm, _, encoded = digest.partition(":")
        return self._blobs / algorithm / encoded

    def size(self, digest: str) -> int | None:
        """Bytes of the blob; None if there is none, or if `digest` is no digest."""
        try:
            return self.blob(digest).stat().st_size
        except (FileNotFoundError, InvalidArgument):
            return None

    def place(self, data: Path, digest: str) -> None:
        """Make a blob of the file `data`, which is on the disk; there may be that blob already.

        The new name is on the disk too on return. Raises `Unknown`.
        """
        blob = self.blob(digest)
        if blob.exists():
            return
        with explained(f"rename {data} {blob}"):
            data.chmod(0o400)
            data.rename(blob)
            sync_folder(blob.parent)

    def remove(self, digest: str) -> None:
        """Remove a blob, which there need not be."""
        with suppress(FileNotFoundError):
            self.blob(digest).unlink()

    def digests(self) -> Iterator[str]:
        """The digests of all blobs."""
        for entry in os.scandir(self._blobs / "sha256"):
            digest = f"sha256:{entry.name}"
            with suppress(InvalidArgument):
                digests.validate(digest)
                yield digest

    def ingest(self, key: str) -> Path:
        """The folder of an unfinished write; its name says nothing of `key`, which may be any."""
        return self._ingests / hashlib.sha256(key.encode()).hexdigest()

    def ingests(self) -> Iterator[Path]:
        """The folders of all unfinished writes."""
        return self._ingests.iterdir()

    @staticmethod
    def discard(ingest: Path) -> None:
        """Remove what was written so far, if anything was. Raises `Unknown`."""
        with explained(f"remove {ingest}"), suppress(FileNotFoundError):
            shutil.rmtree(ingest)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder onto the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Let an OSError be `Unknown`, in words as Go's: ``rename a b: no such file or directory``."""
    try:
        yield
    except OSError as error:
        raise Unknown(f"{doing}: {(error.strerror or str(error)).lower()}") from error

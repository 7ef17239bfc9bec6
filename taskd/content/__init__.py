"""The content store: blobs by the digest of their bytes, which images are made of.

The bytes are files, shared by all namespaces; which namespace has which blob, and its labels, is
in SQLite. Everything that may wait for a disk is done in worker threads.
"""

from taskd.content.ingest import Status
from taskd.content.store import ContentStore, Info
from taskd.content.writer import Writer

__all__ = ["ContentStore", "Info", "Status", "Writer"]

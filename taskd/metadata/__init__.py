"""What clients declared: namespaces, containers, sandboxes, images and leases, in one SQLite file.

Records are plain frozen values; the stores give and take them. Reads run in the event loop
(microseconds); a write runs in a worker thread and has reached the disk when it returns.
"""

from taskd.metadata.containers import Container, ContainerStore
from taskd.metadata.database import Database
from taskd.metadata.images import Descriptor, Image, ImageStore
from taskd.metadata.leases import Lease, LeaseStore, Resource
from taskd.metadata.namespaces import Namespace, NamespaceStore
from taskd.metadata.sandboxes import Sandbox, SandboxStore

__all__ = [
    "Container",
    "ContainerStore",
    "Database",
    "Descriptor",
    "Image",
    "ImageStore",
    "Lease",
    "LeaseStore",
    "Namespace",
    "NamespaceStore",
    "Resource",
    "Sandbox",
    "SandboxStore",
]

"""``io.taskd.oci.v1``: containers by any OCI runtime, as containerd's runc-v2 shim has them."""

from taskd_oci.container import Oci
from taskd_oci.main import main

__all__ = ["Oci", "main"]

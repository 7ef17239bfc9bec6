"""``io.taskd.runc.v1``: containers by any OCI runtime, as containerd's runc-v2 shim has them."""

from taskd_runc.container import Runc
from taskd_runc.main import main

__all__ = ["Runc", "main"]

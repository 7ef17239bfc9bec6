"""Which tests a machine runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["SHORT", "WHOLE", "Plan"]


@dataclass(frozen=True)
class Plan:
    """Arguments of pytest, and the packages that those tests need beyond every machine's."""

    tests: tuple[str, ...]
    packages: tuple[str, ...] = ()
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Packages that one release has, or needs, beside these."""


SHORT = Plan(
    (
        "tests/vm/guest/test_cgroup2_metrics.py",
        "tests/vm/guest/test_cgroup2_oom.py",
        "tests/vm/guest/test_cgroup2_states.py",
        *("-k", "not containerd-shim and not memory_runs_out and not crun-systemd"),
    )
)
"""Containers of our own shim on cgroup v2, and what is measured once as containerd's tells it."""

WHOLE = Plan(
    (
        "tests/vm/guest",
        "tests/integration/test_tasks.py",
        "tests/integration/test_ctr.py",
        "tests/integration/test_daemon.py",
        "tests/integration/test_process_shim.py",
        "tests/integration/test_runtime_v1.py",
        "tests/integration/test_checkpoint.py",
        "tests/integration/test_docker.py",
        "tests/integration/test_under_containerd.py",
        "tests/parity/test_scenarios.py",
    ),
    # Where the kernel has AppArmor, Docker will not do without its parser.
    packages=("docker.io", "apparmor", "criu", "iptables"),
    more={"trixie": ("docker-cli",)},
)
"""And what is tried outside as well, with the containerd that the release has."""

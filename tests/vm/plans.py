"""Which tests machines run, in groups, and in which order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["GROUPS", "PACKAGES", "SHORT", "Group", "chosen"]


@dataclass(frozen=True)
class Group:
    """Tests that have a machine of their own, and whose results are told together."""

    name: str
    tests: tuple[str, ...]
    """Files and folders, or other arguments of pytest."""
    kernel: str = "user"
    """``user``, which is quick, or ``debian``, which has all that Debian's kernel has."""
    without: Mapping[str, str] = field(default_factory=dict)
    """How names of tests begin that cannot hold in such a machine, and why."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """Those of pytest."""
        return (*self.tests, *(f"--deselect={name}" for name in self.without))


SHORT = Group(
    "short",
    (
        "tests/vm/guest/test_cgroup2_metrics.py",
        "tests/vm/guest/test_cgroup2_oom.py",
        "tests/vm/guest/test_cgroup2_states.py",
        *("-k", "not containerd-shim and not memory_runs_out and not crun-systemd"),
    ),
)
"""Containers of our own shim on cgroup v2, and what is measured once as containerd's tells it."""


def _integration(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/integration/test_{name}.py" for name in names)


_CHECKPOINT = "tests/integration/test_docker.py::test_docker[checkpoint-"
_CHECKPOINTS = tuple(f"{_CHECKPOINT}{shim}]" for shim in ("containerd-shim", "own-shim"))
_CRIU = "the kernel has to have CRIU's options: it is among the checkpoints, in QEMU"
_SAME = "tests/parity/test_scenarios.py::test_the_same_transcript"
_RESTORED = tuple(
    f"{_SAME}[{each}: tasks: checkpoint {how}]"
    for each in ("1.6", "1.7", "1.7, own shim")
    for how in ("as content", "into a folder")
)
_NEWER = "it is about a newer ctr than the release has"
_VERSION_1 = "on cgroup v2 containerd makes no task of runtime v1: docs/differences.md"
_DEPRECATED = tuple(
    f"{_SAME}[{each}: introspection: deprecations]" for each in ("1.7", "1.7, own shim")
)
GROUPS = (
    Group("tasks", _integration("tasks")),
    Group(
        "ctr",
        _integration("ctr"),
        without={
            "tests/integration/test_ctr.py::test_what_a_runtime_can_do": _NEWER,
            "tests/integration/test_ctr.py::test_sandboxes": _NEWER,
        },
    ),
    Group("shims", _integration("process_shim", "under_containerd")),
    Group("v1", _integration("runtime_v1")),
    Group(
        "docker",
        _integration("docker"),
        without={_CHECKPOINT: _CRIU},
    ),
    Group(
        "parity",
        ("tests/parity/test_scenarios.py",),
        without=dict.fromkeys(_RESTORED, _CRIU) | dict.fromkeys(_DEPRECATED, _VERSION_1),
    ),
    Group("daemon", _integration("daemon")),
    # Their kernel must have CRIU's option, huge pages, or sets of processors.
    Group("checkpoint", (*_integration("checkpoint"), *_CHECKPOINTS), "debian"),
    Group(
        "parity-checkpoint",
        ("tests/parity/test_scenarios.py", "-k", "checkpoint or restore"),
        "debian",
    ),
    Group("guest", ("tests/vm/guest",), "debian"),
)
"""What is tried outside as well, with the containerd that the release has, and what cannot be."""

# Where the kernel has AppArmor, Docker will not do without its parser.
PACKAGES = {
    "bookworm": ("docker.io", "apparmor", "criu", "iptables"),
    "trixie": ("docker.io", "docker-cli", "apparmor", "criu", "iptables"),
}
"""What they need beyond every machine's packages."""


def chosen(words: str) -> tuple[Group, ...]:
    """The groups of these names; a file or folder of tests is a group as well; all, if empty.

    Raises ValueError if there is none of that name.
    """
    named = {group.name: group for group in GROUPS}
    found = []
    for word in words.split():
        if word not in named and not word.startswith("tests/"):
            raise ValueError(f"no group {word!r}: it is one of {', '.join(named)}, or tests/…")
        found.append(named.get(word) or Group(word.replace("/", "-"), (word,)))
    return tuple(found) or GROUPS

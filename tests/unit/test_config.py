from __future__ import annotations

import math
from pathlib import Path

import pytest

from taskd import config, durations
from taskd.config import Config
from taskd.diff.limits import Limits
from taskd.errors import InvalidArgument
from taskd.gc.policy import Policy
from taskd.runtime.pool import PoolLimits


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def test_everything_can_be_set(file: Path) -> None:
    file.write_text(
        'root = "/r"\nstate = "/s"\naddress = "/a/b.sock"\nlog_level = "warn"\n'
        'shutdown_timeout = "1m30s"\n'
        'blockio_config_file = "/b"\nrdt_config_file = "/c"\nresctrl_path = "/d"\n'
        '[timeouts]\n"io.containerd.timeout.task.state" = "500ms"\n'
        "[gc]\npause_threshold = 0.5\ndeletion_threshold = 5\nmutation_threshold = 0\n"
        'schedule_delay = "20ms"\nstartup_delay = "1h"\n'
        '[diff]\nmax_size = "1GiB"\nmax_entries = 5\nsync_fs = true\n'
    )
    loaded = config.load(file)
    assert (loaded.root, loaded.state, loaded.log_level) == (Path("/r"), Path("/s"), "warn")
    assert (loaded.socket, loaded.ttrpc_socket) == (Path("/a/b.sock"), Path("/a/b.sock.ttrpc"))
    assert loaded.shutdown_timeout == 90.0
    assert (loaded.blockio_config_file, loaded.rdt_config_file) == (Path("/b"), Path("/c"))
    assert loaded.resctrl_path == Path("/d")
    assert loaded.timeouts["io.containerd.timeout.task.state"] == 0.5
    assert loaded.timeouts["io.containerd.timeout.shim.load"] == 5.0
    assert loaded.gc == Policy(0.5, 5, 0, 0.02, 3600.0)
    assert loaded.diff == Limits(1 << 30, 5, True)


def test_how_many_containers_share_a_process(file: Path) -> None:
    """Ten where they survive it; who says a number has that in any case."""

    def limits(text: str) -> tuple[PoolLimits, PoolLimits]:
        file.write_text(f"[shims]\n{text}")
        shims = config.load(file).shims
        return shims.limits(survival=True), shims.limits(survival=False)

    surviving = PoolLimits(10, of_survivors=True)
    assert limits("") == (surviving, PoolLimits(1, of_survivors=True))
    said = 'pool = 7\nlifetime = 50\nidle = "5s"\n'
    assert limits(said) == (PoolLimits(7, 50, 5.0),) * 2
    assert limits("pool = 1\n") == (PoolLimits(1),) * 2
    assert limits("pool = 10\nshared = true\n") == (PoolLimits(math.inf),) * 2


def test_containers_survive_unless_somebody_says_otherwise(file: Path) -> None:
    assert Config().shims.adopt
    file.write_text("[shims]\nadopt = false\n")
    assert not config.load(file).shims.adopt


def test_one_runtime_may_answer_in_anothers_stead(file: Path) -> None:
    file.write_text('[runtimes]\n"io.containerd.runc.v2" = "io.taskd.oci.v1"\n')
    assert config.load(file).runtimes == {"io.containerd.runc.v2": "io.taskd.oci.v1"}


def test_garbage_is_collected_as_containerd_does(file: Path) -> None:
    file.write_text("[gc]\npause_threshold = 0\n")
    assert config.load(file).gc == Policy(0.0, 0, 100, 0.0, 0.1)
    assert Config().gc == Policy(0.02, 0, 100, 0.0, 0.1)


def test_the_socket_follows_the_state_folder() -> None:
    assert Config(state=Path("/x")).socket == Path("/x/taskd.sock")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense = 1", "nonsense: unknown key"),
        ("[shims]\npool = 0", "shims: pool: 0 is too little"),
        ("[shims]\npool = true", "shims: pool: True is not a number"),
        ("[runtimes]\na = 1", "runtimes: a: 1 is not the name of a runtime"),
        ('[runtimes]\na = "b"\nb = "c"', "runtimes: a: b has another one in its stead"),
        ("root = 1", "root: 1 is not an absolute path"),
        ('state = "a/b"', "state: 'a/b' is not an absolute path"),
        ('log_level = "loud"', "log_level: 'loud' is not one of trace"),
        ('log_level = ["info"]', "log_level: ['info'] is not one of trace"),
        ("log_level = {}", "log_level: {} is not one of trace"),
        ("shutdown_timeout = 10", "shutdown_timeout: 10 is not a duration"),
        ('timeouts = "1s"', "timeouts: '1s' is not a table"),
        ('[timeouts]\n"io.x" = "1s"', "timeouts: io.x: unknown key"),
        (
            '[timeouts]\n"io.containerd.timeout.shim.load" = "1"',
            "timeouts: io.containerd.timeout.shim.load: '1' is not a duration",
        ),
        ("gc = 1", "gc: 1 is not a table"),
        ("[gc]\npause = 1", "gc: pause: unknown key"),
        (
            "[transfer]\nmax_concurrent_downloads = 0",
            "transfer: max_concurrent_downloads: 0 is too little",
        ),
        (
            "[transfer]\nmax_concurrent_uploaded_layers = -1",
            "transfer: max_concurrent_uploaded_layers: -1 is not a number",
        ),
        ('[transfer]\nconfig_path = "certs"', "transfer: config_path: 'certs' is not an absolute"),
        ("[transfer]\nidle_timeout = 1", "transfer: idle_timeout: 1 is not a duration"),
        ('[gc]\npause_threshold = "1"', "gc: pause_threshold: '1' is not a share"),
        ("[gc]\npause_threshold = nan", "gc: pause_threshold: nan is not a share"),
        ("[gc]\npause_threshold = 0.9", "gc: pause_threshold: 0.9 is more than 0.5"),
        ("[gc]\npause_threshold = inf", "gc: pause_threshold: inf is more than 0.5"),
        ("[gc]\npause_threshold = -0.1", "gc: pause_threshold: -0.1 is not a share"),
        ("[gc]\ndeletion_threshold = -1", "gc: deletion_threshold: -1 is not a number"),
        ("[gc]\nmutation_threshold = 1.5", "gc: mutation_threshold: 1.5 is not a number"),
        ("[gc]\nmutation_threshold = true", "gc: mutation_threshold: True is not a number"),
        ("[gc]\nschedule_delay = 5", "gc: schedule_delay: 5 is not a duration"),
        ("root = ", "Invalid value (at"),
    ],
)
def test_what_is_wrong_is_named(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(InvalidArgument) as caught:
        config.load(file)
    assert caught.value.message.startswith(f"{file}: {words}")


@pytest.mark.parametrize(
    "text",
    [
        '[events.nats]\nservers = "nats://u:secret@h"',
        '[events.nats]\nservers = ["u:secret@h:4222"]',
        '[events.nats]\nservers = ["nats://ok", "http://u:secret@h"]',
        '[events.nats]\nservers = [["nats://u:secret@h"]]',
        '[events.nats]\nservers = {a = "nats://u:se@secret@h"}',
        '[tracing]\nendpoint = "ftp://u:secret@h"',
    ],
)
def test_what_is_wrong_is_named_without_its_password(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(InvalidArgument, match="h") as caught:
        config.load(file)
    assert "secret" not in caught.value.message


def test_what_is_given_counts(file: Path) -> None:
    file.write_text('root = "/r"\nstate = "/s"\n')
    loaded = config.load(file, state=Path("/given"))
    assert (loaded.root, loaded.state) == (Path("/r"), Path("/given"))
    assert config.load(None, root=Path("/given")).root == Path("/given")


def test_users_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    for name in ("XDG_RUNTIME_DIR", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert (Config().root, Config().state) == (Path("/var/lib/taskd"), Path("/run/taskd"))
    monkeypatch.setattr("os.geteuid", lambda: 4_000_000)
    monkeypatch.setenv("HOME", "/home/somebody")
    with pytest.raises(InvalidArgument, match="user 4000000 has no runtime folder"):
        Config()
    assert Config(state=Path("/s")).root == Path("/home/somebody/.local/share/taskd")
    file.write_text('state = "/s"\n')
    assert config.load(file).socket == Path("/s/taskd.sock")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert (Config().root, Config().state) == (Path("/data/taskd"), tmp_path / "taskd")


def test_a_file_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(InvalidArgument, match=str(file)):
        config.load(file)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1h", 3600), ("1m30s", 90), ("1.5s", 1.5), ("250ms", 0.25), ("10us", 1e-5), ("0", 0)],
)
def test_durations_are_gos(text: str, expected: float) -> None:
    assert durations.seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "1", "s", "1x", "1s ", "-1s", "1s2", True, None, 1.5])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        durations.seconds(text)

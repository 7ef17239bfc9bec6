"""The command line for containers, at a real terminal and from scripts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
from harness.daemons import Containerd, Daemon, Taskd
from harness.real import need
from harness.shell import COMMAND, SECONDS, Shell, environment


class Own(Shell):
    """With one daemon and a namespace of its own."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.namespace = f"cli-{uuid.uuid4().hex[:12]}"
        super().__init__(environment(daemon, self.namespace))

    def rows(self, *arguments: object) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.out(*arguments, "--json").splitlines()]

    def ids(self, *arguments: object) -> list[str]:
        return self.out("ps", "-q", *arguments).split()

    def clear(self) -> None:
        names = self.ids("-a")
        if names:
            self("rm", "-f", *names)


@pytest.fixture(scope="module", params=[Taskd, Containerd])
def serving(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    need("containerd", "containerd-shim-runc-v2", "runc")
    folder = Path(tempfile.mkdtemp(prefix="cli-"))
    with request.param(folder / "d") as daemon:
        yield daemon
    print(daemon.log.read_text())
    shutil.rmtree(folder, ignore_errors=True)


on_taskd = pytest.mark.parametrize("serving", [Taskd], indirect=True)
"""What has nothing to do with which daemon it is."""


@pytest.fixture
def shell(serving: Daemon) -> Iterator[Own]:
    made = Own(serving)
    yield made
    made.clear()
    assert not list(Path("/run").glob(f"taskd-io-*-{made.namespace}+*"))
    assert not Path("/var/lib/taskd-logs", made.namespace).exists()


def test_what_a_container_says_and_how_it_ends(shell: Own, rootfs: Path) -> None:
    script = "echo out; echo err >&2; exit 7"
    done = shell("run", "--rm", rootfs, "/bin/sh", "-c", script, status=7)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    assert shell.ids("-a") == []


def test_what_it_is_given_to_read(shell: Own, rootfs: Path, tmp_path: Path) -> None:
    text = "".join(f"line {number}\n" for number in range(20_000))
    assert shell.out("run", "--rm", "-i", rootfs, "/bin/cat", stdin=text) == text
    (tmp_path / "text").write_text(text)
    with (tmp_path / "text").open() as file:
        assert shell.out("run", "--rm", "-i", rootfs, "/bin/cat", stdin=file.fileno()) == text
    # Without -i it reads nothing.
    assert shell.out("run", "--rm", rootfs, "/bin/cat", stdin=text) == ""


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        ("/bin/nosuch", 127, "no such file"),
        ("nosuch", 127, "executable file not found"),
        ("/etc", 126, "permission denied"),
    ],
)
def test_what_cannot_be_started(
    shell: Own, rootfs: Path, command: str, status: int, words: str
) -> None:
    done = shell("run", rootfs, command, status=status)
    assert done.stdout == ""
    assert words in done.stderr
    assert done.stderr.startswith("taskd: ")
    assert shell.ids("-a") == []


def test_a_life_in_the_background(shell: Own, rootfs: Path) -> None:
    script = "echo started $WHO; echo oops >&2; exec sleep 1000"
    run = ("run", "-d", "--name", "web", "-e", "WHO=me", "-l", "app=x", "-m", "64m")
    assert shell.out(*run, "--pids-limit", "20", rootfs, "/bin/sh", "-c", script) == "web\n"
    [row] = shell.rows("ps")
    assert (row["id"], row["status"], row["exit_code"]) == ("web", "running", None)
    assert row["labels"].items() >= {"app": "x"}.items()  # type: ignore[attr-defined]
    assert " Up " in shell.out("ps")

    until(lambda: shell("logs", "web").stderr == "oops\n")
    assert shell("logs", "web").stdout == "started me\n"
    assert shell("logs", "-n", "1", "--timestamps", "web").stderr.endswith("Z oops\n")
    executed = shell("exec", "-e", "A=b", "-w", "/tmp", "web", "/bin/sh", "-c", "echo $WHO $A; pwd")
    assert executed.stdout == "me b\n/tmp\n"
    assert shell("exec", "web", "/bin/sh", "-c", "exit 3", status=3).stderr == ""
    assert "no such file" in shell("exec", "web", "/bin/nosuch", status=127).stderr

    [found] = json.loads(shell.out("inspect", "web"))
    assert found["spec"]["process"]["args"][:2] == ["/bin/sh", "-c"]
    [stats] = shell.rows("stats", "--no-stream")
    assert (stats["id"], stats["memory_limit"], stats["pids_limit"]) == ("web", 64 << 20, 20)
    assert "64.0MiB" in shell.out("stats", "--no-stream", "web")

    assert shell.out("pause", "web") == "web\n"
    assert shell.rows("ps")[0]["status"] == "paused"
    assert shell.out("unpause", "web") == "web\n"
    waiting = shell.begin("wait", "web")
    assert "must be stopped" in shell("rm", "web", status=1).stderr.replace(
        "running", "must be stopped"
    )
    assert shell.out("stop", "-t", "0.2", "web") == "web\n"
    assert waiting.communicate(timeout=SECONDS) == ("137\n", "")
    assert shell.ids() == []
    [row] = shell.rows("ps", "-a")
    assert (row["status"], row["exit_code"]) == ("exited", 137)
    assert "Exited (137) " in shell.out("ps", "-a")
    assert shell.out("rm", "web") == "web\n"
    assert "not found" in shell("logs", "web", status=1).stderr


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_one_in_the_background_that_goes_by_itself(shell: Own, rootfs: Path) -> None:
    run = ("run", "--rm", "-d", "--name", "gone", rootfs, "/bin/sh", "-c")
    if isinstance(shell.daemon, Containerd):
        done = shell(*run, "true", status=125)
        assert "removes no container that has ended: it is no taskd" in done.stderr
        assert shell.ids("-a") == []
        return
    assert shell.out(*run, "echo x; read y < /fifo || exit 3") == "gone\n"
    until(lambda: shell.ids("-a") == [])
    assert "not found" in shell("logs", "gone", status=1).stderr
    # What is done to it meanwhile finds it gone, and that is what was wanted.
    for end in (("stop", "-t", "20"), ("rm", "-f")):
        shell(*run, "trap 'exit 0' TERM; while true; do sleep 0.05; done")
        assert shell.out(*end, "gone") == "gone\n"
        until(lambda: shell.ids("-a") == [])


def test_a_command_that_is_gone_before_its_container(shell: Shell, rootfs: Path) -> None:
    run = ("run", "--rm", "--name", "left", rootfs, "/bin/sleep", "1000")
    running = shell.begin(*run)
    until(lambda: shell.ids() == ["left"])
    running.kill()
    running.communicate()
    typed = shell.at_terminal("run", "-it", "--rm", "--name", "tty", rootfs, "/bin/cat")
    until(lambda: sorted(shell.ids()) == ["left", "tty"])
    typed.close()  # SIGHUP
    shell("kill", "left", "tty")
    if isinstance(shell.daemon, Containerd):
        until(lambda: sorted(shell.ids("-f", "status=exited")) == ["left", "tty"])
    else:
        until(lambda: shell.ids("-a") == [])
        assert not list(Path("/run").glob(f"taskd-io-*-{shell.namespace}+*"))


@on_taskd
def test_some_of_them(shell: Own, rootfs: Path) -> None:
    for name, label in (("one", "a=1"), ("two", "a=2"), ("three", "b")):
        shell("run", "-d", "--name", name, "-l", label, rootfs, "/bin/sleep", "1000")
    shell("run", "--name", "ended", rootfs, "/bin/sh", "-c", "exit 4", status=4)
    assert sorted(shell.ids()) == ["one", "three", "two"]
    assert sorted(shell.ids("-a")) == ["ended", "one", "three", "two"]
    assert shell.ids("-f", "label=a=1") == ["one"]
    assert sorted(shell.ids("-f", "label=a")) == ["one", "two"]
    assert sorted(shell.ids("-f", "name=t")) == ["three", "two"]
    assert shell.ids("-f", "status=exited") == ["ended"]
    assert shell.ids("-f", "exited=4") == ["ended"]
    assert shell.ids("-f", "exited=5") == []
    assert "ancestor=, exited=, id=" in shell("ps", "-f", "nosuch=1", status=1).stderr
    assert "it is one of created, exited" in shell("ps", "-f", "status=x", status=1).stderr
    shell("run", "-d", "--name", "log", rootfs, "/bin/sleep", "1000")
    assert "logs has what is kept" in shell("attach", "log", status=1).stderr
    assert "made in the foreground" in shell("logs", "ended", status=1).stderr
    # What is wrong with one of them does not keep it from the others.
    done = shell("rm", "-f", "one", "nosuch", "ended", status=1)
    assert sorted(done.stdout.split()) == ["ended", "one"]
    assert 'container "nosuch"' in done.stderr
    done = shell("kill", "-s", "sigterm", "two", "three")
    assert sorted(done.stdout.split()) == ["three", "two"]
    assert "'SIGNOSUCH' is no signal" in shell("kill", "-s", "SIGNOSUCH", "two", status=1).stderr


@on_taskd
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_go_to_the_container(shell: Own, rootfs: Path, number: int, status: int) -> None:
    traps = f"trap 'exit {status}' {signal.Signals(number).name[3:]}"
    script = f"{traps}; echo ready; while true; do sleep 0.05; done"
    running = shell.begin("run", "--rm", rootfs, "/bin/sh", "-c", script)
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    running.send_signal(number)
    assert running.wait(SECONDS) == status
    assert shell.ids("-a") == []


def test_a_terminal(shell: Own, rootfs: Path) -> None:
    typed = shell.at_terminal("run", "-it", "--rm", "--name", "tty", rootfs, "/bin/sh")
    typed.expect("[#$] ")
    typed.sendline("stty size")
    typed.expect("33 99")
    typed.setwinsize(44, 88)
    until(lambda: "44 88" in shell.out("exec", "tty", "/bin/sh", "-c", "stty size < /dev/console"))
    typed.sendline("sleep 1000")
    time.sleep(0.5)
    typed.sendintr()  # a key, which is the process's
    typed.sendline("echo $((6*7))")
    typed.expect("42")
    typed.sendline("exit 5")
    typed.expect(pexpect.EOF)
    typed.close()
    assert typed.exitstatus == 5
    assert shell.ids("-a") == []


def test_leaving_a_terminal_and_coming_back(shell: Own, rootfs: Path) -> None:
    typed = shell.at_terminal("run", "-it", "--rm", "--name", "tty", rootfs, "/bin/sh")
    typed.expect("[#$] ")
    typed.send("\x10\x11")
    typed.expect(pexpect.EOF)
    typed.close()
    assert typed.exitstatus == 0
    assert shell.ids() == ["tty"]
    again = shell.at_terminal("attach", "tty")
    # Nothing is shown until something is typed; keys that come before it listens are kept.
    again.sendline("echo $((6*7))")
    again.expect("42")
    again.sendline("exit 6")
    again.expect(pexpect.EOF)
    again.close()
    assert again.exitstatus == 6
    if isinstance(shell.daemon, Taskd):
        until(lambda: shell.ids("-a") == [])


@on_taskd
def test_a_terminal_is_left_as_it_was(shell: Own, rootfs: Path, tmp_path: Path) -> None:
    line = " ".join([*COMMAND, "run", "-it", "--rm", str(rootfs), "/bin/true"])
    script = f"stty -a >$1; {line}; stty -a | cmp - $1; echo same=$?"
    typed = pexpect.spawn(
        "/bin/sh",
        ["-c", script, "sh", str(tmp_path / "before")],
        env=shell.environment,
        encoding="utf-8",
        timeout=SECONDS,
    )
    typed.expect("same=0")
    typed.expect(pexpect.EOF)


@on_taskd
def test_a_terminal_where_there_is_none(shell: Own, rootfs: Path) -> None:
    done = shell("run", "-it", rootfs, "/bin/sh", status=125)
    assert done.stderr == "taskd: -t: the standard input is no terminal\n"
    assert shell.ids("-a") == []


@on_taskd
def test_colours_on_a_terminal_alone(shell: Own, rootfs: Path) -> None:
    shell("run", "-d", "--name", "web", rootfs, "/bin/sleep", "1000")
    assert "\x1b[" not in shell.out("ps")
    typed = shell.at_terminal("ps")
    typed.expect("\x1b\\[32mUp")
    typed.expect(pexpect.EOF)


def test_a_daemon_that_is_not_there(tmp_path: Path) -> None:
    for command in (["ps"], ["run", "/", "/bin/true"]):
        done = subprocess.run(
            [*COMMAND, *command],
            env=os.environ | {"TASKD_ADDRESS": str(tmp_path / "none")},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == (1 if command == ["ps"] else 125)
        assert str(tmp_path / "none") in done.stderr
        assert "Traceback" not in done.stderr


@on_taskd
def test_a_bad_option_is_named(shell: Own, rootfs: Path) -> None:
    for option, words in (
        (("-m", "lots"), "'lots' is no size"),
        (("-m", "-5"), "memory: -5 is no limit"),
        (("-m", "99999999999999999999g"), "is no limit"),
        (("-m", "1"), "the minimum memory limit allowed is 6MB"),
        (("--cpus", "0.001"), "cpus: 0.001: the range of CPUs begins at 0.01"),
        (("--user", "4294967296"), "uids and gids must be in range 0-2147483647"),
        (("--user", "0:2147483648"), "uids and gids must be in range 0-2147483647"),
        (("--namespace", "b<ad"), 'namespace: identifier "b<ad" must match'),
        (("--cpus", "nan"), "cpus: nan is no limit"),
        (("--cpus", "inf"), "cpus: inf is no limit"),
        (("--cpus", "-1"), "cpus: -1.0 is no limit"),
        (("-v", "/nosuch:/x"), "/nosuch"),
        (("-v", "relative:/x"), "mount 'relative:/x'"),
        (("--name=-bad-",), "-bad-"),
        (("--env-file", "/nosuch"), "/nosuch"),
    ):
        done = shell("run", *option, rootfs, "/bin/true", status=125)
        assert words in done.stderr
    assert shell.ids("-a") == []

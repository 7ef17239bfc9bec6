"""In processes of their own: what is changed is changed for the whole process."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from harness.processes import LIBCS_SIGNALS

PREAMBLE = """
import os, resource, signal, subprocess, sys
from taskd import inherited
def setlimit(soft): resource.setrlimit(resource.RLIMIT_NOFILE, (soft, 2000))
def says(command, **options):
    with inherited.popen(command, stdout=subprocess.PIPE, **options) as process:
        return process.stdout.read().decode().strip()
def soft(): return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
"""
SH = 'says(["sh", "-c", "ulimit -Sn; ulimit -Hn; umask"])'


def run(program: str) -> list[str]:
    text = PREAMBLE + textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "held", [0, 250, 1500], ids=["with room", "with little room", "beyond the old limit"]
)
def test_children_get_the_old_limit(held: int) -> None:
    assert run(
        f"""
        setlimit(256); inherited.take()
        kept = [os.open("/", os.O_RDONLY) for _ in range({held})]
        print(soft(), {SH}, soft())
        """
    ) == ["2000", "256", "2000", "0022", "2000"]


def test_nothing_is_changed_where_nothing_was_raised() -> None:
    assert run(f"setlimit(2000); inherited.take(); print({SH}, soft())") == [
        *("2000", "2000", "0022", "2000")
    ]


@pytest.mark.parametrize("times", [1, 3])
def test_the_umask_is_ours_alone(times: int) -> None:
    program = f"os.umask(0o022); [inherited.take(umask=0o077) for _ in range({times})]"
    assert run(f"{program}; print({SH}); print(oct(os.umask(0)))")[2:] == ["0022", "0o77"]


@pytest.mark.parametrize("held", [0, 300])
@pytest.mark.parametrize(
    ("command", "options", "error"),
    [
        (["/no/such"], "", "FileNotFoundError"),
        (["no-such-program"], "", "FileNotFoundError"),
        (["no-such-program"], ", env={'PATH': '/bin'}", "FileNotFoundError"),
        (["./here"], ", cwd='/bin'", "FileNotFoundError"),
        (["./sh", "-c", "exit"], ", cwd='/bin'", ""),
        (["sh", "-c", "exit"], ", env={'PATH': '/bin'}", ""),
    ],
)
def test_a_program_that_there_is_not(
    held: int, command: list[str], options: str, error: str
) -> None:
    found = run(
        f"""
        setlimit(256); inherited.take()
        kept = [os.open("/", os.O_RDONLY) for _ in range({held})]
        try: inherited.popen({command}{options}).wait()
        except OSError as exc: print(type(exc).__name__)
        assert soft() == 2000
        """
    )
    assert found == ([error] if error else [])


def test_what_was_ignored_is_not_in_children() -> None:
    ignored = {signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP, signal.SIGCHLD, 40}
    (mask,) = run(
        f"""
        for each in {[int(each) for each in ignored]}: signal.signal(each, signal.SIG_IGN)
        inherited.take()
        for each in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, 40):
            os.kill(os.getpid(), each)
        print(says(["sed", "-n", "s/SigIgn:.//p", "/proc/self/status"]))
        """
    )
    assert int(mask, 16) & ~LIBCS_SIGNALS == 0


def test_what_go_outlives_and_what_ends_it() -> None:
    ended = run(
        """
        inherited.take()
        stops = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        for each in signal.valid_signals() - stops:
            if os.fork() == 0:
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                os.kill(os.getpid(), each)
                os._exit(0)
            _, status = os.wait()
            if os.WIFSIGNALED(status): print(int(each))
        """
    )
    names = "INT QUIT ILL TRAP ABRT BUS FPE KILL SEGV TERM STKFLT SYS"
    expected = {int(signal.Signals[f"SIG{name}"]) for name in names.split()}
    assert {int(each) for each in ended} == expected


def test_a_fork_becomes_as_the_process_was_started(tmp_path: Path) -> None:
    soft, mask, ignored, caught = run(
        """
        os.umask(0o027); setlimit(256); signal.signal(signal.SIGINT, signal.SIG_IGN)
        inherited.take(umask=0o077)
        if os.fork() == 0:
            inherited.restore()
            os.execv("/bin/sh", ["sh", "-c",
                "ulimit -Sn; umask; sed -n 's/Sig[IC].*:.//p' /proc/self/status"])
        os.wait()
        """
    )
    assert (soft, mask, int(caught, 16)) == ("256", "0027", 0)
    assert int(ignored, 16) & ~LIBCS_SIGNALS == 0


def test_many_threads_start_programs_at_once() -> None:
    """None of them has another limit, nor does anybody run into the old one meanwhile."""
    assert run(
        """
        from concurrent.futures import ThreadPoolExecutor
        setlimit(100); inherited.take()
        def work(_):
            held = os.open("/", os.O_RDONLY)  # beyond the old limit, before long
            return says(["sh", "-c", "ulimit -Sn"])
        with ThreadPoolExecutor(4) as threads:
            print(*sorted(set(threads.map(work, range(120)))), soft())
        """
    ) == ["100", "2000"]

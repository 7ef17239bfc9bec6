"""`taskd shim check` on the real Go shims, on ours, and on shims that are broken on purpose."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from harness.broken_shims import FAULTS, MINIMAL, install
from harness.generations import GENERATIONS, Generation
from harness.real import need

from taskd import check, pidfd, plugins
from taskd.check import Outcome, Subject
from taskd.check.differences import NO_CGROUP

TASKD = Path(sysconfig.get_path("scripts"), "taskd")
WASM_PROGRAMS = Path(__file__).parents[2] / "shims/wasm/programs"
OWN = ("io.taskd.oci.v1", "io.taskd.process.v1")

# On a machine that has a lot else to do; some 50 s alone.
pytestmark = pytest.mark.timeout(1800)


def run_kit(*arguments: object, prefix: tuple[str, ...] = (), **env: str) -> str:
    """What the command printed. It must have been successful."""
    done = subprocess.run(
        [*prefix, str(TASKD), "shim", "check", *map(str, arguments)],
        env=os.environ | env,
        stdout=subprocess.PIPE,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0
    return done.stdout


@pytest.mark.parametrize("generation", GENERATIONS, ids=str)
def test_containerds_shims_pass(generation: Generation, tmp_path: Path) -> None:
    need("containerd-shim-runc-v2", "runc")
    folder = generation.binaries()
    shim = folder / "containerd-shim-runc-v2" if folder else "containerd-shim-runc-v2"
    shown = run_kit(shim, "--junit", tmp_path / "junit.xml", "--timeout", "120")
    assert " 0 failed" in shown.splitlines()[-1]
    suites = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert int(suites.get("tests", 0)) == len(check.CHECKS) + 1
    assert int(suites.get("failures", 1)) == 0


@pytest.mark.parametrize("runtime", OWN)
def test_our_shims_pass_without_known_differences(runtime: str) -> None:
    need("runc")
    shown = run_kit(runtime, "--timeout", "120")
    claimed = [each for each in check.CHECKS if each.theme == "adoption"]
    if pidfd.tells_exits():
        end = f"{len(check.CHECKS) + 1} passed, 0 failed"
    else:
        passed = len(check.CHECKS) + 1 - len(claimed)
        end = f"{passed} passed, 0 failed, {len(claimed)} not applicable"
    assert shown.splitlines()[-1].endswith(end)


def test_a_runtime_without_a_shell_passes_with_programs_of_its_own() -> None:
    programs = {each.stem: f"/{each.name}" for each in WASM_PROGRAMS.glob("*.wat")}
    assert programs.keys() < check.PROGRAMS.keys()
    given = [f"--program={name}={path}" for name, path in programs.items()]
    shown = run_kit("io.taskd.wasm.v1", "--rootfs", WASM_PROGRAMS, *given, "--timeout", "120")
    assert " 0 failed" in shown.splitlines()[-1]
    reasons = set(re.findall(r"^  n/a  .*  \((.*)\)$", shown, re.MULTILINE))
    lacking = {f"no program {name} is given" for name in check.PROGRAMS.keys() - programs.keys()}
    assert reasons == lacking | {
        "there is no process before Start",
        "Pids is not implemented",
        "sandboxes is not implemented",
    }


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder of nobody's, with a path short enough for sockets."""
    folder = Path("/tmp/taskd-check-nobody")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(0o700)
    os.chown(folder, 65534, 65534)
    yield folder
    shutil.rmtree(folder)


def test_plain_processes_need_no_root(home: Path) -> None:
    need("setpriv")
    # The interpreter may be in a home of root's, which nobody could read otherwise.
    reading = "-all,+dac_read_search"
    nobody = (
        "setpriv",
        *("--reuid", "65534", "--regid", "65534", "--clear-groups"),
        *("--inh-caps", reading, "--ambient-caps", reading, "--bounding-set", reading),
    )
    shown = run_kit(
        *("io.taskd.process.v1", "bootstrap", "lifecycle", "execs", "stdio", "events", "leaks"),
        *("--timeout", "120"),
        prefix=nobody,
        HOME=str(home),
        XDG_RUNTIME_DIR=str(home),
    )
    assert f"{NO_CGROUP.shims}: {NO_CGROUP.what}" in shown
    assert "  n/a       memory that runs out is told (oom)" in shown
    assert " 0 failed" in shown.splitlines()[-1]


BROKEN = {
    "exits twice": "events: create, start, exit, delete: each once, in this order",
    "starts late": "events: create, start, exit, delete: each once, in this order",
    "other namespace": "events: the envelope: namespace, and a time that does not go back",
    "wrong status": "lifecycle: created, running, stopped, deleted",
    "does not wait": "container by state: running: Wait",
    "starts twice": "container by state: stopped: Start",
    "leaves a process": "leaks: nothing is left of what all other checks made",
    "leaves descriptors": "leaks: descriptors of the shim: none is left of 20 execs",
    "cleans up nothing": "death and delete: kill -9 of the shim, and delete: a container that runs",
    "never ends": "death and delete: Shutdown of a shim that never had a container",
    "ends too early": "death and delete: Shutdown is ignored while there is a container",
    "falls over garbage": "malformed ttrpc: half a frame, and the end",
    "forgets terminal size": "stdio: ResizePty is seen by the process in the terminal",
    "deletes what runs": "container by state: running: Delete",
}


def test_every_fault_is_tried() -> None:
    assert BROKEN.keys() == FAULTS.keys()


@pytest.mark.parametrize("fault", BROKEN)
async def test_a_fault_is_found_by_the_check_that_is_about_it(fault: str, folder: Path) -> None:
    expected = BROKEN[fault]
    about = "lifecycle: it is running" if fault == "leaves a process" else expected
    shim = install(folder, fault)
    # It does not fail for not being there at all.
    subprocess.run([shim, "-v"], check=True)
    results = await check.run(Subject(shim, timeout=120), check.select([about]))
    failed = [f"{result.check.theme}: {result.check.name}" for result in results if result.failure]
    assert expected in failed
    # What else may fail is the end of the very same check's container.
    assert set(failed) <= {expected, "leaks: nothing is left of what all other checks made"}


async def test_a_shim_with_the_least_passes(folder: Path) -> None:
    """What it lacks is absent, what needs that does not apply, and nothing fails."""
    subject = Subject(install(folder, MINIMAL), timeout=120)
    themes = ["lifecycle", "container by state", "execs", "stdio"]
    results = await check.run(subject, check.select(themes))
    outcomes = {f"{each.check.theme}: {each.check.name}": each.outcome for each in results}
    assert outcomes["lifecycle: Stats tells what it uses, in a message of containerd's"] is (
        Outcome.MISSING
    )
    assert outcomes["container by state: paused: State"] is Outcome.NOT_APPLICABLE
    assert outcomes["execs: exit statuses"] is Outcome.MISSING
    assert [(name, each) for name, each in outcomes.items() if each is Outcome.FAILED] == []


def test_bad_command_lines() -> None:
    for arguments in (
        ["/no/such/shim"],
        ["no-such-shim"],
        [str(plugins.executable(OWN[1])), "no such check"],
        [str(plugins.executable(OWN[1])), "--option", "NoSuch=1"],
        [str(plugins.executable(OWN[1])), "--program", "slep=/sleep"],
        [str(plugins.executable(OWN[1])), "--program", "sleep=/no/such/sleep"],
        [str(plugins.executable(OWN[1])), "--junit", "/no/such/folder/file.xml"],
        [str(plugins.executable(OWN[1])), "--junit", "/"],
    ):
        done = subprocess.run(
            [str(TASKD), "shim", "check", *arguments], capture_output=True, text=True
        )
        assert done.returncode == 2
        assert "error: " in done.stderr

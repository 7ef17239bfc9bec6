from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path

import pytest
from harness.shell import Shell

from taskd import config
from taskd.cli import doctor, main
from taskd.cli.doctor import Verdict, findings
from taskd.cli.document import document
from taskd.config import Config
from taskd.grpc import engine

WHOLE = """
root = "/a/root"
state = "/a/state"
address = "/a/socket"
log_level = "debug"
log_format = "json"
shutdown_timeout = "1m0.5s"
blockio_config_file = "/a/blockio.yaml"
rdt_config_file = "/a/rdt.yaml"
resctrl_path = "/a/resctrl"

[timeouts]
"io.containerd.timeout.shim.load" = "250ms"

[gc]
pause_threshold = 0.1
deletion_threshold = 5
mutation_threshold = 0
schedule_delay = "1us"
startup_delay = "0s"

[diff]
max_size = "3GiB"
max_entries = 7
sync_fs = true

[restart]
interval = "3s"

[snapshots]
sync_remove = true
mount_options = ["volatile", "index=on"]

[events]
sync = "full"
max_age = "12h"
max_size = 1025
node = "seven"

[events.nats]
servers = ["nats://10.0.0.1:4222", "tls://10.0.0.2:4222"]
stream = "OTHER"
subject = "x.{node}.{topic}"
user = "somebody"
password_file = "/a/password"
tls_ca = "/a/ca"
tls_cert = "/a/cert"
tls_key = "/a/key"

[metrics]
address = "[::1]:1338"

[tracing]
endpoint = "http://127.0.0.1:4318"
sampling_ratio = 0.25
service_name = "other"

[shims]
warm = false
pool = 7
shared = true
lifetime = 77
idle = "1.5s"
adopt = false
renew = false

[runtimes]
"io.containerd.runc.v2" = "io.taskd.oci.v1"

[transfer]
max_concurrent_downloads = 7
max_concurrent_uploaded_layers = 8
config_path = "/a/certs.d"
idle_timeout = "9s"

[grpc]
engine = "h2"
uid = 7
gid = 8
"""


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        status = main(arguments)
    except SystemExit as exc:
        status = int(exc.code or 0)
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.parametrize("text", ["", WHOLE, '[metrics]\naddress = ""', '[gc]\nstartup_delay="3h"'])
def test_what_is_dumped_is_what_was_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    given, dumped = tmp_path / "given.toml", tmp_path / "dumped.toml"
    given.write_text(text)
    status, out, _ = run(capsys, "config", "dump", "--config", str(given))
    dumped.write_text(out)
    loaded, again = config.load(given), config.load(dumped)
    assert (status, again.socket) == (0, loaded.socket)
    assert document(again) == document(loaded)
    # The socket is said although it follows from the state folder.
    assert config.load(dumped, address=None) == config.load(given, address=None)


@pytest.mark.parametrize(
    ("survive", "text", "pool"),
    [
        (True, "", "10 of containers that survive their shim, 1 of others"),
        (True, "[shims]\nadopt = false", "1, as containers end with their shim here"),
        (False, "", "1, as containers end with their shim here"),
    ],
)
def test_what_nobody_has_decided_is_said(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    survive: bool,
    text: str,
    pool: str,
) -> None:
    monkeypatch.setattr("taskd.pidfd.tells_exits", lambda: survive)
    given = tmp_path / "given.toml"
    given.write_text(text)
    _, out, _ = run(capsys, "config", "dump", "--config", str(given))
    *_, shims = out.partition("\n[shims]\n")
    assert f"# pool: {pool}\n" in shims.partition("\n[")[0]
    *_, grpc = out.partition("\n[grpc]\n")
    assert f"# engine: {engine.chosen()}," in grpc
    given.write_text("[shims]\npool = 3\n[grpc]\nengine = 'h2'\nuid = 1\ngid = 2")
    _, out, _ = run(capsys, "config", "dump", "--config", str(given))
    assert out.startswith("# resctrl_path: where it is mounted\n")
    assert out.count("#") == 1


def test_every_setting_is_dumped(tmp_path: Path) -> None:
    file = tmp_path / "whole.toml"
    file.write_text(WHOLE)

    def keys(table: dict[str, object], path: str = "") -> set[str]:
        found = set()
        for key, value in table.items():
            inner = keys(value, f"{path}{key}.") if isinstance(value, dict) else {path + key}
            found |= inner
        return found

    assert keys(document(config.load(file))) >= keys(tomllib.loads(WHOLE))
    assert set(document(config.load(file))) == set(Config.__dataclass_fields__)


def test_a_bad_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("[gc]\nstartup_delay = 3\n")
    status, _, err = run(capsys, "config", "check", str(file))
    assert (status, err) == (
        1,
        f'taskd: {file}: gc: startup_delay: 3 is not a duration such as "1m30s"\n',
    )
    file.write_text("")
    assert run(capsys, "config", "check", str(file)) == (0, f"{file}: good\n", "")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["evnts"], "there is no evnts; did you mean events?"),
        (["shim", "chek"], "there is no chek; did you mean check?"),
        (["config", "dmp"], "there is no dmp; did you mean dump?"),
        (["serve", "--log-level", "inof"], "there is no inof; did you mean info?"),
        (["config", "zzz"], "there is no zzz; choose from check, dump"),
    ],
)
def test_a_word_that_is_no_command(
    capsys: pytest.CaptureFixture[str], typed: list[str], words: str
) -> None:
    status, _, err = run(capsys, *typed)
    assert status == 2
    assert err.rstrip().endswith(words)


def test_the_completion_completes() -> None:
    script = Shell().out("completion", "bash")
    for typed, expected in ((("ev",), "events"), (("shim", "ch"), "check")):
        words = " ".join(("taskd", *typed))
        asked = (
            f"COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _shtab_taskd; echo ${{COMPREPLY[@]}}"
        )
        found = subprocess.run(["bash", "-c", f"{script}\n{asked}"], capture_output=True, text=True)
        assert found.stdout.split() == [expected], found.stderr


@pytest.mark.parametrize("shell", ["fish", "tcsh", "zsh"])
def test_other_shells_have_a_completion_too(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    status, out, _ = run(capsys, "completion", shell)
    assert status == 0
    assert "taskd" in out


def test_the_doctor_finds_a_machine_that_can_run_containers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TASKD_ADDRESS", raising=False)
    file = tmp_path / "taskd.toml"
    file.write_text(f'root = "{tmp_path}/root"\nstate = "{tmp_path}/state"\n')
    status, out, _ = run(capsys, "doctor", "--json", "--config", str(file))
    found = [json.loads(line) for line in out.splitlines()]
    assert status == 0, out
    good = {each["subject"] for each in found if each["verdict"] == "good"}
    assert good >= {"python", "kernel", "cgroups", "OCI runtime", "shim", "root", "state"}
    assert [each["text"] for each in found if each["subject"] == "daemon"] == [
        f"no socket {tmp_path}/state/taskd.sock"
    ]
    assert not [each for each in found if each["verdict"] == "missing" and not each["remedy"]]
    status, out, _ = run(capsys, "doctor", "--config", str(file))
    assert status == 0
    assert "-> taskd serve\n" in out


def test_the_doctor_looks_where_clients_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKD_ADDRESS", str(tmp_path / "other.sock"))
    found = [each.text for each in findings(Config(root=tmp_path, state=tmp_path))]
    assert f"no socket {tmp_path}/other.sock" in found


def test_the_doctor_finds_no_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor.os, "geteuid", lambda: 0)
    found = list(findings(Config(root=tmp_path, state=tmp_path)))
    bad = [(each.subject, each.text) for each in found if each.verdict is Verdict.BAD]
    assert bad == [("OCI runtime", "neither runc nor crun")]


def test_the_doctor_finds_a_socket_that_nobody_serves(tmp_path: Path) -> None:
    (tmp_path / "taskd.sock").touch()
    found = [
        each
        for each in findings(Config(root=tmp_path / "deeper/root", state=tmp_path))
        if each.verdict is Verdict.BAD
    ]
    assert [(each.subject, each.remedy) for each in found] == [("daemon", "taskd serve")]


def test_what_cannot_be_looked_at_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def _limits(_: Config) -> None:
        raise PermissionError(13, "Permission denied", "/proc/self")

    monkeypatch.setattr(doctor, "_LOOKS", (_limits,))
    [found] = findings(Config(root=tmp_path, state=tmp_path))
    assert (found.verdict, found.subject) == (Verdict.BAD, "limits")
    assert "/proc/self" in found.text


def test_versions(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "version", "--json")
    assert status == 0
    assert json.loads(out).keys() == {"taskd", "python", "engine"}
    assert run(capsys, "version")[1].startswith("taskd ")

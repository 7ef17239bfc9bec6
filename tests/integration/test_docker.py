"""Docker Engine on taskd: its daemon and its command line, with the real shim and the real runc.

A case is a shell script, and a regular expression of all that it writes.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.daemons import Taskd
from harness.docker import Dockerd, amid_a_kill
from harness.generations import criu
from harness.leaks import leaving_nothing
from harness.pace import SLOWER
from harness.real import BOTH_SHIMS, need

pytestmark = BOTH_SHIMS

RUN = "docker run --rm --network none"


@pytest.fixture(scope="module")
def taskd(runc_shim: None) -> Iterator[Taskd]:
    need("dockerd", "/usr/bin/docker", "ps", "script", "containerd-shim-runc-v2", "runc", "busybox")
    folder = Path(tempfile.mkdtemp(prefix="taskd-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(criu()), prepend=":")
        # With more in one process, its death while no daemon runs would end them all.
        settings = "[shims]\npool = 1\n"
        with Taskd(folder / "taskd", "--log-level", "debug", settings=settings) as running:
            yield running
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def dockerd(taskd: Taskd, rootfs: Path) -> Iterator[Dockerd]:
    namespace = f"test-{uuid.uuid4().hex[:12]}"
    running = Dockerd(taskd.folder.with_name("docker"), taskd.address, namespace)
    with leaving_nothing(taskd, namespace), running:
        running.sh(f"tar -C {rootfs} -c . | docker import - busybox")
        yield running


@pytest.fixture
def docker(dockerd: Dockerd) -> Iterator[Dockerd]:
    yield dockerd
    dockerd.remove_containers()


CASES = {
    "run": (
        f"{RUN} busybox sh -c 'echo out; sleep 0.1; echo err >&2; exit 42'; echo $?; docker ps -aq",
        "out\nerr\n42\n",
    ),
    "run what is not there": (
        f"{RUN} busybox /no/such; echo $?; {RUN} busybox /etc; echo $?",
        '.*"/no/such": stat /no/such: no such file or directory.*\n127\n.*exec: "/etc":.*\n126\n',
    ),
    "run with standard input": (
        f"seq 50000 | {RUN} -i busybox cat | md5sum; seq 50000 | md5sum",
        r"(.+\n)\1",
    ),
    "run with a terminal": (
        f"""
        cat > $DOCKER_CONFIG.sh <<'END'
        stty rows 31 cols 97
        {{ until docker exec one ls /small; do sleep 0.1; done; stty rows 41 cols 107 < /dev/tty
        }} > /dev/null 2>&1 &
        {RUN} -it --name one busybox sh -c '
            tty; until [ "$(stty size)" = "31 97" ]; do sleep 0.1; done 2> /dev/null
            mkdir /small; until [ "$(stty size)" = "41 107" ]; do sleep 0.1; done; sh'
END
        echo 'echo $((6 * 7)); exit 3' | script -qec "sh $DOCKER_CONFIG.sh" /dev/null; echo $?
        """,
        "(?s).*/dev/pts/0\r?\n.*42\r?\n.*3\n",
    ),
    "eight at once": (
        f"""
        for n in 1 2 3 4 5 6 7 8; do
            ({RUN} busybox sh -c "echo $n; exit $n"; echo $?) > $DOCKER_CONFIG.$n &
        done
        wait; echo $(cat $DOCKER_CONFIG.?)
        """,
        "1 1 2 2 3 3 4 4 5 5 6 6 7 7 8 8\n",
    ),
    "attach, logs": (
        """
        up one -i busybox sh -c 'echo ready; head -n 1; sleep 0.3; exit 5'
        (echo hello; sleep 2) | docker attach one; echo $?; docker logs one
        """,
        "(ready\n)?hello\n5\nready\nhello\n",
    ),
    "exec": (
        """
        up one busybox sleep 1000
        docker exec one sh -c 'echo out; exit 7'; echo $?
        echo in | docker exec -i -w /tmp -e A=b one sh -c 'cat; pwd; echo $A'
        docker exec one /no/such; echo $?
        docker exec -d one sh -c 'sleep 0.1; mkdir /made'; soon 'docker exec one ls -d /made' /made
        echo 'tty; exit 4' | script -qec 'docker exec -it one sh' /dev/null | grep -c ^/dev/pts/0
        for n in 1 2 3 4 5 6 7 8; do docker exec one sh -c "exit $n" & pids="$pids $!"; done
        for pid in $pids; do wait $pid; echo -n $?; done
        state one
        """,
        r"out\n7\nin\n/tmp\nb\n.*no such file.*\n12[67]\n1\n12345678running 0\n",
    ),
    "top, stats": (
        """
        up one --memory 64m busybox sh -c 'sleep 1000; true'
        docker top one -o pid,args | sed 's/ *[0-9]* *//'
        # Newer clients give the daemon two seconds, whatever machine it is on.
        for n in $(seq 20); do
            docker stats --no-stream --format '{{.PIDs}} {{.MemUsage}}' one > $DOCKER_CONFIG.st 2>&1
            grep -q timeout $DOCKER_CONFIG.st || break
        done
        cat $DOCKER_CONFIG.st
        """,
        r"PID +COMMAND\nsh -c sleep 1000; true\nsleep 1000\n2 [1-9].*iB / 64MiB\n",
    ),
    "pause, unpause": (
        """
        up one busybox sh -c 'while :; do echo .; sleep 0.02; done'
        docker pause one; state one; docker exec one true
        docker logs one > $DOCKER_CONFIG.log; sleep 0.2; docker logs one | cmp - $DOCKER_CONFIG.log
        docker unpause one; state one
        sleep 0.2; docker logs one | cmp -s - $DOCKER_CONFIG.log; echo $?
        """,
        "one\npaused 0\nError.* is paused.*\none\nrunning 0\n1\n",
    ),
    "update": (
        """
        up one --memory 64m busybox sleep 1000
        docker update --memory 32m --memory-swap 64m --pids-limit 17 one | head -n 1
        docker exec one sh -c 'cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes pids/pids.max ||
            cat memory.max pids.max' 2> /dev/null
        """,
        "one\n33554432\n17\n",
    ),
    "out of memory": (  # which containerd's shim begins to watch once the container has started
        """
        docker run --name one --network none --memory 16m busybox sh -c '
            sleep 1; dd if=/dev/zero of=/dev/null bs=200M count=1; echo $?; sleep 2' 2> /dev/null
        field one State.OOMKilled
        """,
        "(Killed\n)?137\ntrue\n",
    ),
    "kill": (
        """
        up one busybox sh -c 'trap "echo usr1" USR1; echo ready; while :; do sleep 0.05; done'
        soon 'docker logs one' ready
        docker kill --signal USR1 one; soon 'docker logs one' 'ready\nusr1'
        docker kill one; docker wait one; state one; docker kill one
        """,
        "one\none\n137\nexited 137\nError.* is not running\n",
    ),
    "stop, start, restart": (
        """
        up one busybox sh -c 'trap "echo bye; exit 5" TERM; echo ready
            while :; do sleep 0.05; done'
        soon 'docker logs one' ready
        docker stop one; state one
        docker start one; soon 'docker logs one' 'ready\nbye\nready'
        docker restart one; soon 'docker logs one' 'ready\nbye\nready\nbye\nready'; state one
        up deaf busybox sleep 1000; docker stop --time 1 deaf; state deaf
        up heeds --init busybox sleep 1000; docker stop heeds; state heeds
        """,
        "one\nexited 5\none\none\nrunning 0\ndeaf\nexited 137\nheeds\nexited 143\n",
    ),
    "rm": (
        """
        up one busybox sh -c 'sleep 1000; true'; pid=$(field one State.Pid)
        docker rm one; docker rm --force one; docker ps -aq; ls -d /proc/$pid
        """,
        "Error.* (cannot remove a|container is) running.*\none\nls: .*\n",
    ),
    "restart policies": (
        """
        up failing --restart on-failure:2 busybox sh -c 'echo; exit 3'
        up well --restart on-failure:2 busybox true
        up always --restart always busybox sleep 1000
        kill -9 $(field always State.Pid); soon 'field always RestartCount' 1
        soon 'state always' 'running 0'
        soon 'state failing; field failing RestartCount' 'exited 3\n2'; docker logs failing | wc -l
        state well; field well RestartCount
        docker stop --time 0 always; sleep 0.5; state always
        """,
        "3\nexited 0\n0\nalways\nexited 137\n",
    ),
    "events": (
        """
        since=$(date +%s.%N); up one busybox sleep 1000; docker exec one sh -c 'exit 6'
        { docker pause one; docker unpause one; docker kill one; docker wait one; docker rm one
        } > /dev/null
        docker events --since $since --until $(date +%s.%N) --filter type=container \
            --format '{{.Action}}|{{.Actor.Attributes.exitCode}}' |
            sed 's/:[^|]*//; s/|<no value>//; s/|/ /'
        """,
        "create\nstart\nexec_create\nexec_start\nexec_die 6\n"
        "pause\nunpause\nkill\ndie 137\ndestroy\n",
    ),
    "health checks": (
        """
        up one --health-cmd 'echo seen; test -e /ok' --health-interval 100ms --health-retries 1 \
            busybox sh -c 'busybox touch /ok; sleep 1000'
        for now in healthy unhealthy healthy; do
            soon 'field one State.Health.Status' $now
            docker exec one sh -c 'busybox rm /ok 2> /dev/null || busybox touch /ok'
        done
        docker inspect --format '{{(index .State.Health.Log 0).Output}}' one
        """,
        "seen\n\n",
    ),
    "checkpoint": (
        """
        # To checkpoint a network namespace, CRIU needs iptables and iproute2.
        docker run --detach --name one --network host busybox \
            sh -c 'n=0; while :; do n=$((n + 1)); echo $n; sleep 0.02; done' > /dev/null
        sleep 0.3; docker checkpoint create one first; soon 'state one' 'exited 137'
        docker start --checkpoint first one; sleep 0.3
        docker checkpoint create --leave-running one second; state one
        docker stop --time 0 one; docker start --checkpoint second one; sleep 0.3; state one
        docker checkpoint ls one; docker kill one
        docker logs one | sort -n | uniq | wc -l > $DOCKER_CONFIG.log
        docker logs one | sort -n | tail -n 1 | cmp - $DOCKER_CONFIG.log
        """,
        "first\nsecond\nrunning 0\none\nrunning 0\nCHECKPOINT NAME\nfirst\nsecond\none\n",
    ),
}


@pytest.mark.parametrize(("script", "expected"), CASES.values(), ids=CASES)
def test_docker(docker: Dockerd, script: str, expected: str) -> None:
    said = docker.sh(script)
    # The client may still be waiting when it learns that there is nothing to wait for.
    said = re.sub(r"time=.*error waiting for container: context canceled.*\n", "", said)
    assert re.fullmatch(expected, said), said


def pid_of(docker: Dockerd, name: str) -> int:
    return int(docker.sh(f"field {name} State.Pid"))


def shim_of(docker: Dockerd, name: str) -> int:
    """The parent of a container's first process."""
    status = Path(f"/proc/{pid_of(docker, name)}/stat").read_text()
    return int(status.rpartition(")")[2].split()[1])


@pytest.mark.parametrize(("how", "seconds"), [("stop", 0), ("kill", 4)])
def test_restarting_taskd_loses_nothing(
    taskd: Taskd, docker: Dockerd, how: str, seconds: float
) -> None:
    for name in ("stays", "ends", "shimless", "late"):
        docker.sh(f"up {name} busybox sleep 1000")
    docker.sh("up returns --restart always busybox sleep 1000")
    pids = {name: pid_of(docker, name) for name in ("stays", "ends", "shimless", "late", "returns")}
    shim = shim_of(docker, "shimless")
    talking = subprocess.Popen(
        [*RUN.split(), "-i", "--name", "talks", "busybox", "cat"],
        env=docker.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert talking.stdin is not None
    assert talking.stdout is not None
    talking.stdin.write("before\n")
    assert talking.stdout.readline() == "before\n"
    assert docker.sh("soon 'state talks' 'running 0'") == ""

    getattr(taskd, how)()
    talking.stdin.write("meanwhile\n")
    assert talking.stdout.readline() == "meanwhile\n"
    for pid in (pids["ends"], pids["returns"], shim, pids["shimless"]):
        os.kill(pid, signal.SIGKILL)
    time.sleep(seconds)
    taskd.start()
    # By now dockerd has not subscribed again: it looks for its containerd ever more rarely.
    os.kill(pids["late"], signal.SIGKILL)

    ended = "\n".join(["exited 137"] * 3)
    assert docker.sh(f"soon 'state ends shimless late' '{ended}'") == ""
    assert docker.sh("soon 'field returns RestartCount' 1; soon 'state returns' 'running 0'") == ""
    assert pid_of(docker, "stays") == pids["stays"]
    assert docker.sh("docker exec stays echo in; state stays talks") == "in\n" + "running 0\n" * 2
    out, _ = talking.communicate("after\n", timeout=10)
    assert (out, talking.returncode) == ("after\n", 0)
    said = docker.sh("docker stop --time 0 stays; state stays; docker start late; state late")
    assert said == "stays\nexited 137\nlate\nrunning 0\n"


@pytest.mark.timeout(300)
def test_what_is_under_way_while_taskd_is_killed(taskd: Taskd, docker: Dockerd) -> None:
    amid_a_kill(docker, taskd)


def test_dockerd_finds_its_containers_again(docker: Dockerd) -> None:
    docker.sh("up stays busybox sleep 1000")
    told = "trap 'exit 7' USR1; echo ready; while :; do sleep 0.1; done"
    docker.sh(f'up ends busybox sh -c "{told}"')
    assert docker.sh("soon 'docker logs ends' ready") == ""
    pid, ends = pid_of(docker, "stays"), pid_of(docker, "ends")
    # Docker forgets what it is told of while it ends itself.
    docker.stop()
    os.kill(ends, signal.SIGUSR1)
    patience = time.monotonic() + 10 * SLOWER
    while Path(f"/proc/{ends}").exists():
        assert time.monotonic() < patience
        time.sleep(0.02)
    docker.start()
    assert docker.sh("soon 'state stays ends' 'running 0\nexited 7'") == ""
    assert pid_of(docker, "stays") == pid
    assert docker.sh("docker exec stays echo in") == "in\n"

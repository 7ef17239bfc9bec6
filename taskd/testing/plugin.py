"""The pytest plugin: ``taskd``, ``taskd_container``, ``taskd_event_log``, ``taskd_free_port``.

It knows nothing of event loops: coroutines get objects whose methods are awaited, whatever runs
them, and functions get the same objects with methods that wait.
"""

from __future__ import annotations

import inspect
import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from taskd.testing.harness import Harness

_FACTORY: pytest.StashKey[Any] = pytest.StashKey()
_HARNESS: pytest.StashKey[Any] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("taskd")
    group.addoption(
        "--taskd-address",
        metavar="SOCKET",
        help="use the daemon there, a taskd or a containerd, instead of starting one",
    )
    group.addoption(
        "--taskd-runtime",
        metavar="NAME",
        default="",
        help="runtime of containers whose test names none, such as io.taskd.process.v1",
    )
    group.addoption(
        "--taskd-timeout",
        metavar="SECONDS",
        type=float,
        default=60.0,
        help="after which a container is killed, unless its test says so (default: 60; 0: never)",
    )


@pytest.fixture(scope="session")
def taskd(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """A daemon for the session, on a temporary folder; needs no root, unless the runtime does."""
    from taskd.testing.server import launched

    options = request.config.option
    given = options.taskd_address
    with nullcontext() if given else launched() as server:
        # While it starts, what speaks to it is loaded.
        from taskd.testing.harness import harness

        with harness(server, given, options.taskd_runtime) as made:
            request.config.stash[_HARNESS] = made
            yield made
        del request.config.stash[_HARNESS]


@pytest.fixture
def taskd_container(taskd: Harness, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Makes containers: ``taskd_container(source, args, ready=…, **options)``, awaited or not."""
    from taskd.testing.harness import Factory

    factory = Factory(taskd, request.config.option.taskd_timeout)
    request.node.stash[_FACTORY] = factory
    yield _faced(taskd, request, factory)
    taskd.revive()
    taskd.portal.call(factory.aclose)


@pytest.fixture
def taskd_event_log(taskd: Harness, request: pytest.FixtureRequest) -> Any:
    """The events of the test's containers since its begin: ``wait_for``, ``topics``, ``of``."""
    return _faced(taskd, request, taskd.events.from_now_on())


@pytest.fixture
def taskd_free_port() -> Callable[[], int]:
    """A TCP port on which nobody listens, each time another one."""
    given: set[int] = set()

    def free() -> int:
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                number: int = probe.getsockname()[1]
            if number not in given:
                given.add(number)
                return number

    return free


def _faced(taskd: Harness, request: pytest.FixtureRequest, inner: Any) -> Any:
    from taskd.client.faces import Awaitable, Blocking

    function = inspect.unwrap(request.function)
    face = Awaitable if inspect.iscoroutinefunction(function) else Blocking
    return face(taskd.portal, inner)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    factory = item.stash.get(_FACTORY, None)
    if report.failed and report.when != "teardown" and factory is not None:
        harness = item.config.stash.get(_HARNESS, None)
        if harness is not None:
            report.sections += harness.portal.call(factory.describe)
            if harness.server is not None:
                log = "\n".join(harness.log.splitlines()[-20:])
                report.sections.append(("taskd's log, its last lines", log))
    return report

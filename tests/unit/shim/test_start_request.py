"""The two forms of what a daemon writes to a shim's standard input."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskd.codec import encode
from taskd.proto.containerd.runc.v1 import Options
from taskd.proto.containerd.runtime.bootstrap.v1 import BootstrapParams, Extension, LogLevel
from taskd.proto.google.protobuf import Any
from taskd.shim.request import StartRequest

RUNC = "containerd.runc.v1.Options"
VALUE = encode(Options(shim_cgroup="/shims"))
OTHER = Any(type_url="example.Options", value=b"x")
OPTIONS = Any(type_url=RUNC, value=VALUE)


def params(id: str = "one", namespace: str = "ns", **fields: object) -> bytes:  # noqa: A002
    return encode(BootstrapParams(instance_id=id, namespace=namespace, **fields))  # type: ignore[arg-type]


def parse(given: bytes) -> StartRequest:
    return StartRequest.parse(given, "one", "ns")


@pytest.mark.parametrize(
    "given",
    [
        encode(OPTIONS),
        encode(Any(type_url=f"types.example/{RUNC}", value=VALUE)),
        # A field that the options do not have, and that would be no text as a parameter.
        encode(OPTIONS) + b"\x22\x01\xff",
    ],
)
def test_options_alone(given: bytes) -> None:
    request = parse(given)
    assert request.of_type(RUNC) == VALUE
    assert request.of_type("example.Options") is None
    assert (request.takes_message, request.debug, request.socket_folder) == (False, False, None)


def test_parameters() -> None:
    extensions = [Extension(value=OTHER), Extension(value=OPTIONS), Extension()]
    request = parse(params(extensions=extensions, socket_dir="/run/s", log_level=LogLevel.TRACE))
    assert request.takes_message
    assert request.debug
    assert str(request.socket_folder) == "/run/s"
    assert request.of_type(RUNC) == VALUE
    assert request.of_type("example.Options") == b"x"
    assert not parse(params(log_level=LogLevel.WARN)).debug


@pytest.mark.parametrize(
    "given", [b"", b"\xff\xff", params(id="two"), params(namespace="other"), params("", "")]
)
def test_what_is_neither(given: bytes) -> None:
    request = parse(given)
    assert not request.takes_message
    assert request.of_type(RUNC) is None


@given(st.binary())
def test_any_input_is_read(given: bytes) -> None:
    parse(given)

"""Which HTTP/2 engine carries gRPC: libnghttp2 where ngh2 is installed, or else h2.

ngh2 is young, and an accelerator as uvloop is; h2, which grpclib brings with it, can do all of it,
if slower. Both look like h2's connection here, and both say of headers what bytes they are.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event
from h2.settings import SettingCodes, Settings

__all__ = ["MAX_HEADER_LIST_SIZE", "Engine", "chosen", "connection", "select"]

MAX_HEADER_LIST_SIZE: Final = 256 << 10
"""Of the metadata of a call, in bytes; more of it ends the connection."""

_WINDOW: Final = 4 << 20
"""Bytes that a peer may send before they are taken, for each stream and for all of them."""


class Engine(StrEnum):
    NGH2 = "ngh2"
    H2 = "h2"


class _H2(H2Connection):
    """h2's connection; sending leads to nothing in it, and it complains by raising."""

    complaint = ""

    def late_events(self) -> list[Event]:
        return []


_selected: Engine | None = None


def select(engine: Engine | None) -> None:
    """Use `engine` for connections that are made from now on; None is the best there is.

    Raises ImportError for ngh2 where it is not installed.
    """
    global _selected
    if engine is Engine.NGH2:
        import ngh2  # noqa: F401
    _selected = engine


def chosen() -> Engine:
    """The engine of connections that are made now."""
    if _selected is None:
        try:
            import ngh2  # noqa: F401
        except ImportError:
            return Engine.H2
        return Engine.NGH2
    return _selected


def connection(*, client: bool) -> Any:
    """One end of a connection, which has begun: there is something to send."""
    return _MAKERS[chosen()](client)


def _settings(client: bool) -> dict[SettingCodes, int]:
    settings: dict[SettingCodes, int] = {
        SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW,
        SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST_SIZE,
    }
    if client:
        return {SettingCodes.ENABLE_PUSH: 0, **settings}
    # A client such as Docker Engine keeps a Wait open for each container, on one connection;
    # containerd, with grpc-go, knows no limit.
    return {SettingCodes.MAX_CONCURRENT_STREAMS: 2**31 - 1, **settings}


def _ngh2(client: bool) -> Any:
    from taskd.grpc.nghttp2 import Connection

    return Connection(
        client=client,
        settings={int(code): value for code, value in _settings(client).items()},
        window=_WINDOW,
        max_header_list_size=MAX_HEADER_LIST_SIZE,
    )


def _h2(client: bool) -> Any:
    made = _H2(
        H2Configuration(
            client_side=client,
            header_encoding=None,
            validate_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_inbound_headers=False,
            normalize_outbound_headers=False,
        )
    )
    settings = _settings(client)
    made.local_settings = Settings(client=client, initial_values=settings)
    made.decoder.max_header_list_size = MAX_HEADER_LIST_SIZE
    made.initiate_connection()
    made.increment_flow_control_window(_WINDOW - made.inbound_flow_control_window)
    return made


_MAKERS: Final[dict[Engine, Callable[[bool], Any]]] = {Engine.NGH2: _ngh2, Engine.H2: _h2}

"""libnghttp2 (with ngh2) in the shape that grpclib's protocol layer has of h2's connection.

Bytes in, events out, no I/O. Not all of h2's connection is here: what grpclib's `protocol` module
uses of it, in both roles. Three things differ from h2:

- Sending, too, is a source of events: whether a stream is closed, or could not be sent on, is known
  when its bytes are taken. `late_events` returns what `data_to_send` has led to.
- libnghttp2 cuts data into frames itself, so `max_outbound_frame_size` has no limit.
- Of a GOAWAY that the peer sends nothing ends but what it says: streams that are open go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

import ngh2
from h2.connection import ConnectionState
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    RemoteSettingsChanged,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError, StreamClosedError, TooManyStreamsError
from h2.settings import ChangedSetting, SettingCodes

__all__ = ["Connection"]

_NO_ERROR: Final = 0
_MAX_STREAMS: Final = 100
"""A peer's, until it says otherwise: what RFC 9113 advises at least."""

# What a peer may do without being taken for an attacker. libnghttp2's own limits, some of them a
# thousand at once and 33 a second, are below what honest clients do: one that gives up its waits
# resets as many streams as it has.
_RATE: Final = (100_000, 10_000)


class _Open(NamedTuple):
    """What there is to know of a stream that is."""

    open: bool = True
    closed: bool = False


class _StateMachine:
    def __init__(self) -> None:
        self.state: ConnectionState | None = None


_OPEN: Final = _Open()


class Connection:
    """One end of an HTTP/2 connection."""

    max_outbound_frame_size: Final = 2**31 - 1

    def __init__(
        self,
        *,
        client: bool,
        settings: Mapping[int, int],
        window: int,
        max_header_list_size: int,
    ) -> None:
        """It begins with `settings`, and a receiving window of `window` bytes."""
        self.streams: dict[int, _Open] = {}
        """Those that are open."""
        self.remote_settings: dict[int, int] = {}
        """What the peer has said."""
        self.complaint = ""
        """What the peer has done to have the connection ended."""
        self.state_machine = _StateMachine()
        self._client = client
        self._answered: set[int] = set()
        self._late: list[Event] = []
        self._dead = False
        self._first = b""
        self._native = ngh2.Connection(
            ngh2.Role.CLIENT if client else ngh2.Role.SERVER,
            ngh2.Configuration(
                auto_window_update=False,
                stream_reset_rate_limit=_RATE,
                glitch_rate_limit=_RATE,
                max_inbound_header_list_size=max_header_list_size,
                max_send_header_block_length=max_header_list_size,
                max_continuations=max_header_list_size // 16384 + 1,
                max_outbound_ack=10_000,
            ),
        )
        self._native.initiate_connection(settings)
        self._native.set_local_window_size(window)

    # In

    def receive_data(self, data: bytes) -> list[Event]:
        """What has happened. Raises h2's `ProtocolError` if the peer has broken the protocol."""
        if self._dead:
            raise ProtocolError("the connection has ended")
        try:
            self._native.receive_data(data)
        except ngh2.NGH2Error as exc:
            self._dead = True
            self.state_machine.state = ConnectionState.CLOSED
            raise ProtocolError(str(exc)) from exc
        events: list[Event] = []
        self._happened(events)
        return events

    def late_events(self) -> list[Event]:
        """What sending has led to."""
        late, self._late = self._late, []
        return late

    def acknowledge_received_data(self, size: int, stream_id: int) -> None:
        """Make room in the windows for as much as has been taken."""
        with suppress(ngh2.NGH2Error, ValueError):  # if either has come to its end
            self._native.acknowledge_received_data(size, stream_id)

    # Out

    def data_to_send(self) -> bytes:
        if self._dead:
            return b""
        try:
            data: bytes = self._native.data_to_send()
        except ngh2.NGH2Error:
            self._dead = True
            self.state_machine.state = ConnectionState.CLOSED
            data = b""
        self._happened(self._late)
        if self._first:
            data, self._first = self._first + data, b""
        return data

    def get_next_available_stream_id(self) -> int:
        """Raises h2's `ProtocolError` if the connection ends."""
        try:
            stream_id: int = self._native.next_stream_id
        except ngh2.NGH2Error as exc:
            raise _error(exc, 0) from exc
        return stream_id

    def send_headers(
        self,
        stream_id: int,
        headers: Iterable[tuple[str | bytes, str | bytes]],
        end_stream: bool = False,
    ) -> None:
        """Raises h2's `StreamClosedError`, `TooManyStreamsError`, `ProtocolError`."""
        fields = [(_bytes(name), _bytes(value)) for name, value in headers]
        native = self._native
        try:
            if stream_id in self.streams:
                if stream_id in self._answered or self._client:
                    native.send_trailers(stream_id, fields)
                else:
                    self._answered.add(stream_id)
                    native.send_response(stream_id, fields, end_stream=end_stream)
                return
            if not self._client:
                raise StreamClosedError(stream_id)
            limit = self.remote_settings.get(SettingCodes.MAX_CONCURRENT_STREAMS, _MAX_STREAMS)
            if len(self.streams) >= limit:
                raise TooManyStreamsError(f"the peer takes {limit} streams at once")
            native.send_request(fields, end_stream=end_stream)
            self.streams[stream_id] = _OPEN
        except ngh2.NGH2Error as exc:
            raise _error(exc, stream_id) from exc

    def send_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        """Raises h2's `StreamClosedError`, `ProtocolError`."""
        try:
            self._native.send_data(stream_id, data, end_stream=end_stream)
        except ngh2.NGH2Error as exc:
            raise _error(exc, stream_id) from exc

    def end_stream(self, stream_id: int) -> None:
        """Raises h2's `StreamClosedError`, `ProtocolError`."""
        try:
            self._native.end_stream(stream_id)
        except ngh2.NGH2Error as exc:
            raise _error(exc, stream_id) from exc

    def reset_stream(self, stream_id: int, error_code: int = _NO_ERROR) -> None:
        """What was sent before goes before.

        libnghttp2 itself would have the reset overtake it, and the peer not see the answer.
        """
        self._first = self.data_to_send()
        try:
            self._native.reset_stream(stream_id, error_code)
        except ngh2.NGH2Error as exc:
            raise _error(exc, stream_id) from exc

    def ping(self, data: bytes) -> None:
        self._native.ping(data)

    def close_connection(self) -> None:
        """Say that there will be no more."""
        if not self._dead:
            with suppress(ngh2.NGH2Error):
                self._native.terminate_connection()

    def local_flow_control_window(self, stream_id: int) -> int:
        """Bytes that may be sent now. Raises h2's `StreamClosedError`."""
        native = self._native
        try:
            room: int = min(native.remote_window_size, native.stream_remote_window_size(stream_id))
        except ngh2.NGH2Error as exc:
            raise _error(exc, stream_id) from exc
        return room

    # What the engine says, in h2's words

    def _happened(self, events: list[Event]) -> None:
        for event in self._native.events():
            translate = _TRANSLATIONS.get(type(event))
            if translate is not None:
                translate(self, event, events)

    def _request(self, event: ngh2.RequestReceived, events: list[Event]) -> None:
        stream_id = event.stream_id
        self.streams[stream_id] = _OPEN
        events.append(RequestReceived(stream_id=stream_id, headers=_fields(event)))
        if event.end_stream:
            events.append(StreamEnded(stream_id=stream_id))

    def _response(self, event: ngh2.ResponseReceived, events: list[Event]) -> None:
        stream_id = event.stream_id
        events.append(ResponseReceived(stream_id=stream_id, headers=_fields(event)))
        if event.end_stream:
            events.append(StreamEnded(stream_id=stream_id))

    def _trailers(self, event: ngh2.TrailersReceived, events: list[Event]) -> None:
        stream_id = event.stream_id
        events.append(TrailersReceived(stream_id=stream_id, headers=_fields(event)))
        events.append(StreamEnded(stream_id=stream_id))

    def _data(self, event: ngh2.DataReceived, events: list[Event]) -> None:
        stream_id, data = event.stream_id, event.data
        # Padding is not in it, and libnghttp2 acknowledges that itself.
        if data:
            events.append(
                DataReceived(stream_id=stream_id, data=data, flow_controlled_length=len(data))
            )
        if event.end_stream:
            events.append(StreamEnded(stream_id=stream_id))

    def _reset(self, event: ngh2.StreamReset, events: list[Event]) -> None:
        if self.streams.pop(event.stream_id, None):
            events.append(StreamReset(stream_id=event.stream_id, error_code=event.error_code))

    def _closed(self, event: ngh2.StreamClosed, events: list[Event]) -> None:
        stream_id = event.stream_id
        self._answered.discard(stream_id)
        # It never was, if its request was none.
        if self.streams.pop(stream_id, None) and (event.error_code or event.local_error):
            events.append(
                StreamReset(stream_id=stream_id, error_code=event.error_code, remote_reset=False)
            )

    def _settings(self, event: ngh2.SettingsReceived, events: list[Event]) -> None:
        settings = event.settings
        self.remote_settings.update(settings)
        changed = RemoteSettingsChanged()
        changed.changed_settings = {
            code: ChangedSetting(code, None, value) for code, value in settings.items()
        }
        events.append(changed)

    def _window(self, event: ngh2.WindowUpdated, events: list[Event]) -> None:
        events.append(WindowUpdated(stream_id=event.stream_id, delta=event.increment))

    def _pong(self, event: ngh2.PingAcknowledged, events: list[Event]) -> None:
        events.append(PingAckReceived(ping_data=event.opaque_data))

    def _goaway(self, event: ngh2.GoAwayReceived, events: list[Event]) -> None:
        terminated = ConnectionTerminated()
        terminated.error_code = event.error_code
        terminated.last_stream_id = event.last_stream_id
        terminated.additional_data = event.debug_data
        events.append(terminated)

    def _ended(self, event: ngh2.ConnectionClosed, events: list[Event]) -> None:
        if event.error_code:
            self.complaint = event.debug_data.decode(errors="replace") or str(event.error_code)
        self._dead = True
        self.state_machine.state = ConnectionState.CLOSED


_TRANSLATIONS: Final[Mapping[type, Callable[[Connection, Any, list[Event]], None]]] = {
    ngh2.RequestReceived: Connection._request,
    ngh2.ResponseReceived: Connection._response,
    ngh2.TrailersReceived: Connection._trailers,
    ngh2.DataReceived: Connection._data,
    ngh2.StreamReset: Connection._reset,
    ngh2.StreamClosed: Connection._closed,
    ngh2.SettingsReceived: Connection._settings,
    ngh2.WindowUpdated: Connection._window,
    ngh2.PingAcknowledged: Connection._pong,
    ngh2.GoAwayReceived: Connection._goaway,
    ngh2.ConnectionClosed: Connection._ended,
}


def _fields(event: Any) -> Any:
    return event.headers


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def _error(exc: ngh2.NGH2Error, stream_id: int) -> ProtocolError:
    if isinstance(exc, ngh2.StreamUnavailableError):
        return StreamClosedError(stream_id)
    return ProtocolError(str(exc))

"""The byte tunnel in front of the HTTP/2 server loses nothing, whoever speaks first."""

from typing import Any

from proxy.simulator.http2 import Tunnel


class Wire:
    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True


def pair() -> tuple[Tunnel, Any, Tunnel, Any]:
    outer, inner, outer_wire, inner_wire = Tunnel(), Tunnel(), Wire(), Wire()
    outer.connection_made(outer_wire)  # type: ignore[arg-type]
    inner.connection_made(inner_wire)  # type: ignore[arg-type]
    return outer, outer_wire, inner, inner_wire


def test_what_either_side_said_before_they_were_joined_arrives_in_order():
    outer, outer_wire, inner, inner_wire = pair()
    outer.data_received(b"PRI")
    inner.data_received(b"SETTINGS")
    outer.join(inner)
    outer.data_received(b" more")
    inner.data_received(b" ack")
    assert inner_wire.written == b"PRI more"
    assert outer_wire.written == b"SETTINGS ack"


def test_one_end_lost_closes_the_other():
    outer, outer_wire, inner, inner_wire = pair()
    outer.join(inner)
    inner.connection_lost(None)
    assert outer_wire.closed
    assert not inner_wire.closed

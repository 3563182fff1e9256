"""The multiplexed connection against a real server: order, deadlines, loss, and what it never does twice."""

import asyncio
import ssl
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from redis.exceptions import NoScriptError, ResponseError

from proxy.embedded import Valkey
from proxy.errors import ConfigurationError
from proxy.redis.client import ClusterClient, Multiplexer, RedisAway, Script, connect

ECHO = Script("return {KEYS[1], ARGV[1]}")


@pytest.fixture
async def client(redis_url):
    made = connect(redis_url, timeout_s=2.0)
    yield made
    await made.aclose()


@pytest.fixture
def own_server(server_dir: Path, request: pytest.FixtureRequest):
    """A server this test may kill or freeze."""
    with Valkey.start(server_dir / f"own-{request.node.name}"[:60], with_password=True) as server:
        yield server


async def test_replies_belong_to_their_commands(client):
    futures = [client.submit("ECHO", str(i)) for i in range(2_000)]
    assert await asyncio.gather(*futures) == [str(i).encode() for i in range(2_000)]


async def test_commands_of_one_turn_leave_in_one_write(client):
    await client.submit("PING")
    writer = client._link._writer
    writes: list[int] = []

    class Counted:
        def write(self, data: bytes) -> None:
            writes.append(data.count(b"PING"))
            writer.write(data)

    client._link._writer = Counted()
    await asyncio.gather(*(client.submit("PING") for _ in range(100)))
    assert writes == [100]


async def test_a_script_runs_once_whether_the_server_knows_it_or_not(client):
    count = Script("return redis.call('INCR', KEYS[1])")
    await client.submit("SCRIPT", "FLUSH")
    assert await asyncio.gather(*(client.run(count, ["n"], []) for _ in range(10))) == list(range(1, 11))
    await client.submit("SCRIPT", "FLUSH")
    assert await client.run(count, ["n"], []) == 11
    assert await client.run(ECHO, ["k{}\r\n$"], [b"\x00\xff"]) == [b"k{}\r\n$", b"\x00\xff"]


async def test_error_replies_are_raised_and_harm_nobody_else(client):
    good, bad, unknown, after = (
        client.submit("SET", "s", "x"),
        client.submit("ZADD", "s", 1, "m"),
        client.submit("EVALSHA", "0" * 40, 0),
        client.submit("GET", "s"),
    )
    assert await good == b"OK"
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await bad
    with pytest.raises(NoScriptError):
        await unknown
    assert await after == b"x"


async def test_a_cancelled_command_does_not_shift_replies(client):
    futures = [client.submit("ECHO", str(i)) for i in range(50)]
    for i in range(0, 50, 2):
        futures[i].cancel()
    replies = await asyncio.gather(*futures, return_exceptions=True)
    assert [replies[i] for i in range(1, 50, 2)] == [str(i).encode() for i in range(1, 50, 2)]


async def test_password_database_and_unix_socket(own_server):
    over_tcp = connect(own_server.url.removesuffix("0") + "3", timeout_s=2.0)
    await over_tcp.submit("SET", "here", "3")
    password = own_server.url.split(":")[2].partition("@")[0]
    over_socket = connect(f"unix://:{password}@{own_server.socket_path}?db=3", timeout_s=2.0)
    assert await over_socket.submit("GET", "here") == b"3"
    without = connect(own_server.url.replace(password, "wrong"), timeout_s=2.0)
    with pytest.raises(RedisAway, match=r"(?i)auth|pass"):
        await without.submit("PING")
    for each in (over_tcp, over_socket, without):
        await each.aclose()


async def test_kill_fails_what_waits_and_the_next_command_reconnects(own_server):
    client = connect(own_server.url, timeout_s=2.0)
    lost: list[float] = []
    client.on_lost(lambda: lost.append(time.monotonic()))
    await client.submit("PING")
    own_server.pause()
    waiting = [client.submit("PING") for _ in range(100)]
    await asyncio.sleep(0.02)
    began = time.monotonic()
    own_server.kill()
    replies = await asyncio.gather(*waiting, return_exceptions=True)
    assert time.monotonic() - began < 0.5
    assert all(isinstance(r, RedisAway) and r.lost for r in replies)
    assert len(lost) == 1
    with pytest.raises(RedisAway) as refused:
        await client.submit("PING")
    assert not refused.value.lost
    await asyncio.to_thread(own_server.restart)
    assert await client.submit("PING") == b"PONG"
    await client.aclose()


async def test_a_frozen_server_costs_one_deadline_for_all(own_server):
    client = connect(own_server.url, timeout_s=0.2)
    await client.submit("SET", "k", "before")
    own_server.pause()
    try:
        began = time.monotonic()
        waiting = []
        for i in range(10):
            waiting.append(client.submit("SET", "k", str(i)))
            await asyncio.sleep(0.01)
        replies = await asyncio.gather(*waiting, return_exceptions=True)
        assert 0.19 < time.monotonic() - began < 0.35
        assert all(isinstance(r, RedisAway) and not r.lost for r in replies)
        with pytest.raises(RedisAway):  # connecting counts against the same deadline
            await client.submit("PING")
        assert time.monotonic() - began < 0.8
    finally:
        own_server.resume()
    # Replies that the frozen server still owed belong to a connection that is gone.
    assert await client.submit("ECHO", "fresh") == b"fresh"
    await client.aclose()


async def test_queue_is_bounded(redis_url):
    client = connect(redis_url, timeout_s=2.0, max_waiting=10)
    replies = await asyncio.gather(*(client.submit("PING") for _ in range(15)), return_exceptions=True)
    assert replies[:10] == [b"PONG"] * 10
    assert all(isinstance(r, RedisAway) for r in replies[10:])
    await client.aclose()


async def test_close_fails_what_waits_and_refuses_more(redis_url):
    client = connect(redis_url, timeout_s=2.0)
    await client.submit("PING")
    waiting = client.submit("PING")
    await client.aclose()
    for each in (waiting, client.submit("PING")):
        with pytest.raises(RedisAway, match="closed"):
            await each
    await connect(redis_url).aclose()


def test_url_decides_the_client_and_bad_ones_are_told():
    assert isinstance(connect("redis://127.0.0.1:1"), Multiplexer)
    assert isinstance(connect("rediss://127.0.0.1:1/2?ssl_cert_reqs=none"), Multiplexer)
    assert isinstance(connect("redis+cluster://127.0.0.1:1"), ClusterClient)
    for bad in ("http://127.0.0.1", "127.0.0.1:6379", "redis://127.0.0.1:port"):
        with pytest.raises(ConfigurationError, match="Redis URL"):
            connect(bad)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed one for 127.0.0.1, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1)
        )
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "server.pem"
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(secret + made.public_bytes(pem))
    return path


async def test_tls_is_verified(redis_url, certificate):
    """A TLS terminator before the server, as managed offerings have it."""
    address = redis_url.split("://")[1].partition("/")[0].rpartition("@")[2]

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            sink.write(data)
        sink.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = address.partition(":")
        upstream_reader, upstream = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, upstream), pump(upstream_reader, writer), return_exceptions=True)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    async with await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context) as front:
        url = f"rediss://127.0.0.1:{front.sockets[0].getsockname()[1]}"
        trusting = connect(f"{url}?ssl_ca_certs={certificate}", timeout_s=2.0)
        assert await asyncio.gather(*(trusting.submit("ECHO", str(i)) for i in range(50)))
        await trusting.aclose()
        suspicious = connect(url, timeout_s=2.0)
        with pytest.raises(RedisAway, match=r"(?i)certificate"):
            await suspicious.submit("PING")
        await suspicious.aclose()

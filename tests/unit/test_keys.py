"""Shapes, digests and sealing of issued credentials."""

import base64
import hmac
import re
import string
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import keys
from proxy.errors import ConfigurationError
from proxy.keys import Keyring, Place, SealError

MASTER = bytes(range(32))
OTHER = bytes(range(1, 33))


@pytest.fixture
def keyring() -> Keyring:
    return Keyring(MASTER)


def place(**changes: object) -> Place:
    values: dict[str, object] = {
        "tenant": UUID(int=1),
        "key": UUID(int=2),
        "credential": UUID(int=3),
        "version": 1,
    }
    return Place(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        MASTER.hex(),
        MASTER.hex().upper(),
        base64.b64encode(MASTER).decode(),
        base64.urlsafe_b64encode(bytes([255] * 32)).decode().rstrip("="),
        " " + base64.b64encode(MASTER).decode() + "\n",
    ],
)
def test_master_key_is_read_from_hex_and_base64(text: str) -> None:
    assert len(keys.parse_master_key(text)) == 32


@pytest.mark.parametrize(
    "text", ["", "abc", "00" * 31, "zz" * 32, base64.b64encode(b"x" * 33).decode(), "é" * 32]
)
def test_other_master_keys_are_refused_without_repeating_them(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        keys.parse_master_key(text)
    assert not text or text not in str(caught.value)


def test_new_master_key_reads_back() -> None:
    assert keys.parse_master_key(keys.new_master_key()) != keys.parse_master_key(keys.new_master_key())


def test_bearer_has_the_promised_shape(keyring: Keyring) -> None:
    minted = keyring.mint_bearer()
    assert re.fullmatch(r"th_live_[0-9A-Za-z]{51}", minted.token)
    assert re.fullmatch(keys.TOKEN_PATTERN, minted.token)
    assert minted.token.startswith(minted.prefix) and len(minted.prefix) == 20
    assert minted.last4 == minted.token[-4:]
    assert len(minted.digest) == 32
    assert keyring.bearer_digests(minted.token) == (minted.digest,)
    assert minted.token not in repr(minted)


def test_admin_keys_and_bearers_are_not_interchangeable(keyring: Keyring) -> None:
    admin, bearer = keyring.mint_admin(), keyring.mint_bearer()
    assert keyring.is_admin(admin.token) and not keyring.is_bearer(admin.token)
    assert keyring.bearer_digests(admin.token) == ()
    assert keyring.admin_digests(bearer.token) == ()
    assert keyring.admin_secret_digests(bearer.token)[0] != keyring.bearer_digests(bearer.token)[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[:-1],
        lambda t: t + "\n",
        lambda t: t + "a",
        lambda t: " " + t,
        lambda t: t.replace("th_live_", "th_test_"),
        lambda t: t.replace("th_", "TH_"),
        lambda t: t[:20] + ("a" if t[20] != "a" else "b") + t[21:],
        lambda t: t[:-1] + ("a" if t[-1] != "a" else "b"),
        lambda t: t[:10] + "\u0430" + t[11:],  # a Cyrillic look-alike
        lambda t: t[:10] + "\u0663" + t[11:],  # a digit, but not an ASCII one
        lambda t: t[:10] + "\udc80" + t[11:],
        lambda t: "a" * 1_000_000,
        lambda t: "",
        lambda t: "' OR '1'='1",
    ],
)
def test_damaged_tokens_have_no_digest(keyring: Keyring, change) -> None:
    assert keyring.bearer_digests(change(keyring.mint_bearer().token)) == ()


@given(st.text(max_size=80))
def test_no_text_makes_it_raise(text: str) -> None:
    keyring = Keyring(MASTER)
    assert keyring.bearer_digests(text) == ()
    assert keyring.bearer_digests("th_live_" + text) == ()


def test_a_previous_master_key_refuses_nobody() -> None:
    old = Keyring(MASTER)
    token, sealed = old.mint_bearer(), old.seal("s" * 43, place())
    now = Keyring(OTHER, previous=MASTER)
    assert token.digest in now.bearer_digests(token.token)
    assert now.unseal(sealed, place()) == "s" * 43
    assert now.mint_bearer().pepper_id != token.pepper_id
    rewrapped = now.rewrap(sealed, place())
    assert Keyring(OTHER).unseal(rewrapped, place()) == "s" * 43
    assert now.rewrap(rewrapped, place()) is rewrapped
    assert token.digest not in Keyring(OTHER).bearer_digests(token.token)


def test_secrets_open_only_in_their_place(keyring: Keyring) -> None:
    pair = keyring.mint_access_key()
    sealed = keyring.seal(pair.secret, place())
    assert len(sealed) == keys.SEALED_BYTES
    assert pair.secret.encode() not in sealed
    assert keyring.unseal(sealed, place()) == pair.secret
    for change in ({"tenant": uuid4()}, {"key": uuid4()}, {"credential": uuid4()}, {"version": 2}):
        with pytest.raises(SealError):
            keyring.unseal(sealed, place(**change))


@given(st.integers(min_value=0, max_value=keys.SEALED_BYTES - 1), st.integers(min_value=1, max_value=255))
def test_changed_bytes_do_not_open(position: int, flip: int) -> None:
    keyring = Keyring(MASTER)
    sealed = bytearray(keyring.seal("s" * 43, place()))
    sealed[position] ^= flip
    with pytest.raises(SealError):
        keyring.unseal(bytes(sealed), place())


@pytest.mark.parametrize("sealed", [b"", b"\x01", b"\x01" * 20])
def test_short_boxes_do_not_open(keyring: Keyring, sealed: bytes) -> None:
    with pytest.raises(SealError):
        keyring.unseal(sealed, place())


def test_sealing_twice_differs(keyring: Keyring) -> None:
    assert keyring.seal("s" * 43, place()) != keyring.seal("s" * 43, place())


def test_kept_answers_open_in_their_context_only(keyring: Keyring) -> None:
    sealed = keyring.seal_answer(b'{"bearer_token":"th_live_x"}', "admin|key-1")
    assert b"th_live" not in sealed
    assert keyring.unseal_answer(sealed, "admin|key-1") == b'{"bearer_token":"th_live_x"}'
    assert Keyring(OTHER, previous=MASTER).unseal_answer(sealed, "admin|key-1")
    for wrong in (sealed[:-1], sealed[:10], b"", b"\x02" + sealed[1:]):
        with pytest.raises(SealError):
            keyring.unseal_answer(wrong, "admin|key-1")
    with pytest.raises(SealError):
        keyring.unseal_answer(sealed, "admin|key-2")
    with pytest.raises(SealError):
        keyring.unseal_answer(keyring.seal("s" * 43, place()), "admin|key-1")


def test_access_key_pair_has_the_promised_shape(keyring: Keyring) -> None:
    pair = keyring.mint_access_key()
    assert re.fullmatch(r"THAK[A-Z2-7]{16}", pair.id)
    assert keys.is_access_key_id(pair.id)
    assert set(pair.secret) <= set(string.ascii_letters + string.digits) and len(pair.secret) == 43
    assert pair.secret not in repr(pair)
    assert not keys.is_access_key_id(pair.id + "\n") and not keys.is_access_key_id("AKIA" + pair.id[4:])


@pytest.mark.parametrize("environment", ["", "x", "Live", "li_ve", "live\n", "a" * 13, "1live"])
def test_environment_word_is_checked(environment: str) -> None:
    with pytest.raises(ConfigurationError):
        Keyring(MASTER, environment=environment)


def test_labels_part_the_uses_of_the_master_key(keyring: Keyring) -> None:
    generation = keyring._current
    assert (
        len(
            {generation.pepper.digest(b""), generation.admin_pepper.digest(b""), keys.Mac(MASTER).digest(b"")}
        )
        == 3
    )
    assert generation.id == Keyring(MASTER)._current.id != Keyring(OTHER)._current.id
    assert 0 <= keyring.generation < 2**15


@given(st.binary(max_size=64), st.binary(max_size=300))
def test_a_prepared_mac_is_hmac_sha256(key: bytes, message: bytes) -> None:
    mac = keys.Mac(key)
    assert mac.digest(message) == hmac.digest(key, message, "sha256")
    assert mac.digest(message) == hmac.digest(key, message, "sha256"), "it may be used again"


def test_a_mac_takes_no_key_that_would_have_to_be_hashed() -> None:
    with pytest.raises(ValueError, match="longer"):
        keys.Mac(bytes(65))

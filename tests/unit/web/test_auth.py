"""What proves a caller on the inference routes, and what every wrong credential is told."""

from uuid import uuid4

import pytest

from proxy.domain.policy import Policy
from proxy.domain.tenant import Caller
from proxy.errors import Forbidden, Refusal, Unauthenticated
from proxy.keys import Keyring
from proxy.web.auth import MISSING, TWO, WRONG, KeyAuthenticator

KEYRING = Keyring(bytes(32))
SIGNATURE = b"AWS4-HMAC-SHA256 Credential=%s/20261124/us-east-1/bedrock/aws4_request, Signature=00"


class KnownKeys:
    """A directory that knows one credential."""

    stale = False

    def __init__(self, refusal: str | None = None) -> None:
        self.minted, self.pair = KEYRING.mint_bearer(), KEYRING.mint_access_key()
        self.caller = Caller(
            tenant=uuid4(), tenant_slug="acme", project=None, project_slug=None, key=uuid4(), key_name="ci",
            credential=uuid4(), policy=Policy(plan="default", version="1"), refusal=refusal,
        )  # fmt: skip
        self.asked: list[str] = []

    def by_token(self, token: str) -> Caller | None:
        self.asked.append(token)
        return self.caller if token == self.minted.token else None

    def by_access_key_id(self, access_key_id: str) -> tuple[Caller, str] | None:
        self.asked.append(access_key_id)
        return (self.caller, self.pair.secret) if access_key_id == self.pair.id else None


class ToyClaim:
    def __init__(self, access_key_id: str) -> None:
        self.access_key_id = access_key_id

    def proven(self, secret: str, body: bytes) -> bool:
        return body == b"signed with " + secret.encode()


class ToySignatures:
    """Believes the body instead of computing anything."""

    def claim(self, method, raw_path, query, raw_headers, authorization) -> ToyClaim:
        if b"Credential=" not in authorization:
            raise Unauthenticated(WRONG)
        return ToyClaim(authorization.split(b"Credential=")[1].split(b"/")[0].decode())


def present(known: KnownKeys, *headers: tuple[bytes, bytes]):
    authenticator = KeyAuthenticator(known, ToySignatures())
    return authenticator.present("POST", b"/v1/messages", b"", [(b"host", b"x"), *headers])


def refused(known: KnownKeys, *headers: tuple[bytes, bytes]) -> Refusal:
    with pytest.raises(Refusal) as caught:
        present(known, *headers)
    return caught.value


@pytest.fixture
def known() -> KnownKeys:
    return KnownKeys()


def test_a_token_is_taken_from_either_header(known: KnownKeys) -> None:
    token = known.minted.token.encode()
    for headers in (
        [(b"authorization", b"Bearer " + token)],
        [(b"Authorization", b"bearer " + token)],
        [(b"x-api-key", token)],
        [(b"X-Api-Key", token)],
        [(b"authorization", b"Bearer " + token), (b"x-api-key", token)],
        [(b"authorization", b"Bearer " + token), (b"x-api-key", b"")],
    ):
        proven = present(known, *headers)
        assert proven.caller is known.caller
        proven.verify(b"anything")


def test_two_different_credentials_are_refused_before_either_is_looked_up(known: KnownKeys) -> None:
    token = known.minted.token.encode()
    signature = (b"authorization", SIGNATURE % known.pair.id.encode())
    for headers in (
        [(b"authorization", b"Bearer " + token), (b"x-api-key", b"other")],
        [(b"authorization", b"Bearer " + token), (b"authorization", b"Bearer other")],
        [(b"x-api-key", token), signature],
        [signature, signature],
        [signature, (b"authorization", b"Bearer " + token)],
    ):
        assert str(refused(known, *headers)) == TWO
    assert known.asked == []


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", b"Bearer " + KEYRING.mint_bearer().token.encode()),
        (b"authorization", b"Bearer ' OR '1'='1"),
        (b"authorization", b"Bearer "),
        (b"authorization", b"Bearer"),
        (b"authorization", b"Basic dXNlcjpwYXNz"),
        (b"authorization", b""),
        (b"authorization", b"AWS4-HMAC-SHA256"),
        (b"authorization", SIGNATURE % b"AKIAAAAAAAAAAAAAAAAA"),
        (b"authorization", SIGNATURE % b"THAKAAAAAAAAAAAAAAAA"),
        (b"x-api-key", b"a" * 1_000_000),
        (b"x-api-key", "th_live_\u0430".encode()),
        (b"x-api-key", b"th_live_\xff"),
        (b"x-api-key", b"\x00\r\n"),
    ],
)
def test_every_wrong_credential_gets_the_same_answer(known: KnownKeys, header: tuple[bytes, bytes]) -> None:
    refusal = refused(known, header)
    assert type(refusal) is Unauthenticated
    assert (str(refusal), refusal.reason) == (WRONG, "unauthenticated")


def test_no_credential_is_told_how_to_send_one(known: KnownKeys) -> None:
    assert str(refused(known)) == MISSING
    assert str(refused(known, (b"x-api-key", b""))) == MISSING


def test_a_signature_is_proven_over_the_body(known: KnownKeys) -> None:
    claimed = present(known, (b"authorization", SIGNATURE % known.pair.id.encode()))
    assert claimed.caller is known.caller
    claimed.verify(b"signed with " + known.pair.secret.encode())
    with pytest.raises(Unauthenticated, match=r"^The security token included in the request is invalid\.$"):
        claimed.verify(b"another body")


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("key_revoked", Unauthenticated),
        ("key_disabled", Unauthenticated),
        ("tenant_suspended", Forbidden),
        ("project_suspended", Forbidden),
        ("plan_unusable", Forbidden),
    ],
)
def test_the_true_reason_is_told_to_whom_has_proven_the_key(reason: str, kind: type[Refusal]) -> None:
    known = KnownKeys(refusal=reason)
    refusal = refused(known, (b"x-api-key", known.minted.token.encode()))
    assert type(refusal) is kind and refusal.reason == reason and str(refusal) != WRONG

    claimed = present(known, (b"authorization", SIGNATURE % known.pair.id.encode()))
    with pytest.raises(Unauthenticated, match="security token"):
        claimed.verify(b"not proven")
    with pytest.raises(kind) as caught:
        claimed.verify(b"signed with " + known.pair.secret.encode())
    assert caught.value.reason == reason

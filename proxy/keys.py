"""Key material: what issued credentials look like, and what is kept of them.

A bearer token is `th_<env>_<public id><secret><checksum>`, an admin key `tha_<env>_...` under the
same law. The public id may be shown and searched for; the secret part has 196 random bits; the
checksum (CRC-32 of everything before it, in base62) lets a typo be refused without a look-up. Only
the HMAC-SHA256 of the whole token under a pepper is stored: at this entropy a slow hash would buy
nothing and cost 100 ms a call.

An access key pair is for clients that sign (SigV4). Its secret has 256 random bits and must be
readable again, so it is sealed with AES-256-GCM, bound to its tenant, key, credential and version: a
row copied to another place does not open.

Every use of the master key goes through HKDF-SHA256 under a label of its own. A previous master key
may be given for as long as credentials made under it live; it is used to recognise and to open,
never to make.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import secrets
import zlib
from dataclasses import dataclass
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from proxy.errors import ConfigurationError, TollhouseError

MASTER_KEY_BYTES = 32
PUBLIC_ID_CHARS = 12
SECRET_CHARS = 33  #: 33 x log2(62) = 196 bits
CHECKSUM_CHARS = 6
ACCESS_KEY_ID_CHARS = 20
SECRET_ACCESS_KEY_CHARS = 43  #: 43 x log2(62) = 256 bits
SEALED_BYTES = 1 + 4 + 12 + SECRET_ACCESS_KEY_CHARS + 16

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PAIRS = tuple(a + b for a in _BASE62 for b in _BASE62)
_BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_ACCESS_KEY_PREFIX = "THAK"
_TAIL_CHARS = PUBLIC_ID_CHARS + SECRET_CHARS + CHECKSUM_CHARS
_SEAL_FORMAT = 1
_NONCE_BYTES = 12

_ENVIRONMENT = re.compile(r"[a-z][a-z0-9]{1,11}", re.ASCII)
_TAIL = re.compile(rf"[0-9A-Za-z]{{{_TAIL_CHARS}}}", re.ASCII)
_ACCESS_KEY_ID = re.compile(rf"{_ACCESS_KEY_PREFIX}[A-Z2-7]{{16}}", re.ASCII)

#: what a secret scanner should look for in text (also in SECURITY.md)
TOKEN_PATTERN = rf"\btha?_[a-z][a-z0-9]{{1,11}}_[0-9A-Za-z]{{{_TAIL_CHARS}}}\b"
_ANY_TOKEN = re.compile(TOKEN_PATTERN.replace(r"\b", ""))


class SealError(TollhouseError):
    """A sealed secret does not open: other master key, other place, or changed bytes."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Minted:
    """A new bearer token or admin key. `token` is shown once; the rest is stored.

    `prefix` may be shown to recognise the token by: it ends with the public id.
    """

    token: str
    prefix: str
    digest: bytes
    pepper_id: int

    @property
    def last4(self) -> str:
        return self.token[-4:]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class AccessKey:
    """A new access key pair. `secret` is shown once and stored sealed."""

    id: str
    secret: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a sealed secret belongs; all of it is authenticated with the secret."""

    tenant: UUID
    key: UUID
    credential: UUID
    version: int

    def associated_data(self) -> bytes:
        place = f"{self.tenant.hex}|{self.key.hex}|{self.credential.hex}|{self.version}"
        return f"tollhouse/credential|{place}".encode("ascii")


def parse_master_key(text: str) -> bytes:
    """32 bytes from 64 hex digits or from base64 (either alphabet, padding optional).

    Raises `ConfigurationError` for anything else; the message never repeats the value.
    """
    text = text.strip()
    if len(text) == MASTER_KEY_BYTES * 2:
        try:
            return bytes.fromhex(text)
        except ValueError:
            pass
    try:
        padded = text.replace("-", "+").replace("_", "/").rstrip("=")
        raw = base64.b64decode(padded + "=" * (-len(padded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != MASTER_KEY_BYTES:
        raise ConfigurationError("the master key must be 32 bytes, as 64 hex digits or as base64")
    return raw


def new_master_key() -> str:
    """A fresh master key in the spelling `parse_master_key` reads."""
    return base64.b64encode(secrets.token_bytes(MASTER_KEY_BYTES)).decode("ascii")


def checksum(text: str) -> str:
    """CRC-32 of ASCII `text` as six base62 digits."""
    rest, low = divmod(zlib.crc32(text.encode("ascii")), 3844)
    high, middle = divmod(rest, 3844)
    return _PAIRS[high] + _PAIRS[middle] + _PAIRS[low]


def _derive(master: bytes, label: str, length: int = 32) -> bytes:
    info = b"tollhouse/" + label.encode("ascii")
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(master)


class Mac:
    """HMAC-SHA256 under one key. The key is taken in once, which is a third of what `hmac.digest` costs on a
    short message.
    """

    __slots__ = ("_keyed",)

    def __init__(self, key: bytes) -> None:
        """Raises ValueError for a key that is longer than a block of the hash, 64 bytes."""
        if len(key) > 64:
            raise ValueError("the key is longer than a block")
        self._keyed = hmac.new(key, digestmod="sha256")

    def digest(self, message: bytes) -> bytes:
        """32 bytes."""
        mac = self._keyed.copy()
        mac.update(message)
        return mac.digest()


class _Generation:
    """Everything derived from one master key."""

    __slots__ = ("admin_pepper", "answer_key", "cache_root", "data_key", "id", "pepper")

    def __init__(self, master: bytes) -> None:
        if len(master) != MASTER_KEY_BYTES:
            raise ConfigurationError("the master key must be 32 bytes")
        #: names the generation in stored rows; tells nothing about the master key
        self.id = int.from_bytes(_derive(master, "generation-id/v1", 4), "big") & 0x7FFF_FFFF
        self.pepper = Mac(_derive(master, "bearer-pepper/v1"))
        self.admin_pepper = Mac(_derive(master, "admin-pepper/v1"))
        self.data_key = AESGCM(_derive(master, "credential-data-key/v1"))
        self.answer_key = AESGCM(_derive(master, "stored-answer-key/v1"))
        self.cache_root = _derive(master, "cache-root/v1")


class Keyring:
    """Makes, recognises and opens credentials of one environment.

    `master` and `previous` are 32 bytes each; `environment` is the word in the tokens' prefix.
    Raises `ConfigurationError` when one of them is not.
    """

    def __init__(self, master: bytes, *, previous: bytes | None = None, environment: str = "live") -> None:
        if _ENVIRONMENT.fullmatch(environment) is None:
            raise ConfigurationError("the environment must be 2 to 12 lower-case letters and digits")
        self.environment = environment
        self._current = _Generation(master)
        self._previous = _Generation(previous) if previous is not None and previous != master else None
        self._generations = {self._current.id: self._current}
        if self._previous is not None:
            self._generations.setdefault(self._previous.id, self._previous)
        self._bearer_prefix = f"th_{environment}_"
        self._admin_prefix = f"tha_{environment}_"

    @property
    def generation(self) -> int:
        """Id of the current master key's peppers and data key, as rows store it; 15 bits."""
        return self._current.id & 0x7FFF

    def cache_key(self, tenant: UUID) -> bytes:
        """32 bytes that seal what is cached for one tenant. Another master key has others: what was
        cached under the previous one does not open any more.
        """
        return _derive(self._current.cache_root, f"cache/{tenant.hex}/v1")

    # -- bearer tokens and admin keys -------------------------------------------------------

    def mint_bearer(self) -> Minted:
        return self._mint(self._bearer_prefix, self._current.pepper)

    def mint_admin(self) -> Minted:
        return self._mint(self._admin_prefix, self._current.admin_pepper)

    def is_bearer(self, token: str) -> bool:
        """True when `token` has the shape and checksum of a bearer token of this environment."""
        return _well_formed(token, self._bearer_prefix)

    def is_admin(self, token: str) -> bool:
        """True when `token` has the shape and checksum of an admin key of this environment."""
        return _well_formed(token, self._admin_prefix)

    def bearer_digests(self, token: str) -> tuple[bytes, ...]:
        """What rows of this token may be stored under, current pepper first; () when malformed.

        Each is 32 bytes. Looking digests up, not tokens, leaves a timing attacker nothing to steer.
        """
        if not _well_formed(token, self._bearer_prefix):
            return ()
        raw = token.encode("ascii")
        first = self._current.pepper.digest(raw)
        if self._previous is None:
            return (first,)
        return (first, self._previous.pepper.digest(raw))

    def admin_digests(self, token: str) -> tuple[bytes, ...]:
        """As `bearer_digests`, for admin keys."""
        if not _well_formed(token, self._admin_prefix):
            return ()
        return self.admin_secret_digests(token)

    def admin_secret_digests(self, text: str) -> tuple[bytes, ...]:
        """Digests of an admin secret of any shape (the bootstrap key of a setting has none)."""
        raw = text.encode("utf-8", "surrogatepass")
        first = self._current.admin_pepper.digest(raw)
        if self._previous is None:
            return (first,)
        return (first, self._previous.admin_pepper.digest(raw))

    def _mint(self, prefix: str, pepper: Mac) -> Minted:
        public_id = _random(_BASE62, PUBLIC_ID_CHARS)
        head = prefix + public_id + _random(_BASE62, SECRET_CHARS)
        token = head + checksum(head)
        return Minted(
            token=token,
            prefix=prefix + public_id,
            digest=pepper.digest(token.encode("ascii")),
            pepper_id=self.generation,
        )

    # -- access keys ------------------------------------------------------------------------

    def mint_access_key(self) -> AccessKey:
        """A new pair; the id has 80 random bits and the shape AWS tools expect."""
        return AccessKey(
            id=_ACCESS_KEY_PREFIX + _random(_BASE32, ACCESS_KEY_ID_CHARS - len(_ACCESS_KEY_PREFIX)),
            secret=_random(_BASE62, SECRET_ACCESS_KEY_CHARS),
        )

    def seal(self, secret: str, place: Place) -> bytes:
        """`secret` under the current data key: format (1), generation (4), nonce (12), box."""
        return self._box(self._current.data_key, secret.encode("ascii"), place.associated_data())

    def unseal(self, sealed: bytes, place: Place) -> str:
        """The secret again. Raises `SealError`."""
        generation = self._generation_of(sealed)
        return _open(generation.data_key, sealed, place.associated_data()).decode("ascii")

    def rewrap(self, sealed: bytes, place: Place) -> bytes:
        """The same secret under the current data key; unchanged when it already is.

        Raises `SealError`. Run over all rows after the master key changed, it makes the previous
        key needless for access key pairs without anybody's secret changing.
        """
        if self.is_current(sealed):
            return sealed
        return self.seal(self.unseal(sealed, place), place)

    # -- answers that are kept for a while --------------------------------------------------

    def seal_answer(self, answer: bytes, context: str) -> bytes:
        """An answer that may hold fresh secrets, bound to `context`, under a key of its own."""
        return self._box(self._current.answer_key, answer, context.encode())

    def unseal_answer(self, sealed: bytes, context: str) -> bytes:
        """The answer again. Raises `SealError`."""
        return _open(self._generation_of(sealed).answer_key, sealed, context.encode())

    def _box(self, key: AESGCM, data: bytes, associated: bytes) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        head = bytes([_SEAL_FORMAT]) + self._current.id.to_bytes(4, "big")
        return head + nonce + key.encrypt(nonce, data, associated)

    def _generation_of(self, sealed: bytes) -> _Generation:
        generation = self._generations.get(int.from_bytes(sealed[1:5], "big"))
        if len(sealed) < 5 + _NONCE_BYTES + 16 or sealed[0] != _SEAL_FORMAT or generation is None:
            raise SealError("sealed under another master key or in another format")
        return generation

    def is_current(self, sealed: bytes) -> bool:
        """True when `sealed` needs no `rewrap`."""
        return sealed[:5] == bytes([_SEAL_FORMAT]) + self._current.id.to_bytes(4, "big")


def redacted(text: str) -> str:
    """`text` without the tokens that somebody put where no token belongs."""
    return _ANY_TOKEN.sub("[redacted key]", text) if "th" in text else text


def is_access_key_id(text: str) -> bool:
    """True when `text` has the shape of an access key id of ours."""
    return _ACCESS_KEY_ID.fullmatch(text) is not None


def _open(key: AESGCM, sealed: bytes, associated: bytes) -> bytes:
    try:
        return key.decrypt(sealed[5 : 5 + _NONCE_BYTES], sealed[5 + _NONCE_BYTES :], associated)
    except InvalidTag:
        raise SealError("sealed for another place, or changed") from None


def _random(alphabet: str, count: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(count))


def _well_formed(token: str, prefix: str) -> bool:
    start = len(prefix)
    if len(token) != start + _TAIL_CHARS or not token.startswith(prefix):
        return False
    if _TAIL.fullmatch(token, start) is None:
        return False
    return token[-CHECKSUM_CHARS:] == checksum(token[:-CHECKSUM_CHARS])

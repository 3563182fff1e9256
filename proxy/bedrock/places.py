"""Where Bedrock is: the address of each region, or what an operator put in its place."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from proxy.errors import ConfigurationError

_REGION = re.compile(r"[a-z]{2,4}(-[a-z]+)+-[0-9]{1,2}")
#: DNS suffixes of the partitions, by how their regions begin (botocore: `partitions.json`)
_SUFFIXES = {
    "cn-": "amazonaws.com.cn",
    "eusc-": "amazonaws.eu",
    "us-iso-": "c2s.ic.gov",
    "us-isob-": "sc2s.sgov.gov",
    "us-isof-": "csp.hci.ic.gov",
    "eu-isoe-": "cloud.adc-e.uk",
}


class Place:
    """Where requests of one region go: what is signed as the host, and what the path begins with."""

    __slots__ = ("host", "name", "origin", "port", "prefix", "secure")

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query:
            raise ConfigurationError(f"{endpoint!r} is not an http or https address")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        usual = {"http": 80, "https": 443}[parts.scheme]
        self.host = host if parts.port in {None, usual} else f"{host}:{parts.port}"
        self.origin = f"{parts.scheme}://{self.host}"
        #: what is resolved, and what a certificate must be for
        self.name = parts.hostname
        self.port = parts.port or usual
        self.secure = parts.scheme == "https"
        self.prefix = parts.path.rstrip("/")


class Endpoints:
    """The place of each region. Raises `ConfigurationError` for what is no region.

    `override` is one address for every region (`{region}` in it is replaced), or `region=address` pairs
    separated by commas; an address without a region among them is for all other regions.
    """

    def __init__(self, override: str | None) -> None:
        self._override: str | None = None
        self._regions: dict[str, str] = {}
        self._places: dict[str, Place] = {}
        for one in (override or "").split(","):
            region, equals, address = one.strip().partition("=")
            if equals and _REGION.fullmatch(region):
                self._regions[region] = address.strip()
            elif one.strip():
                self._override = one.strip()
        for known in (self._override, *self._regions.values()):
            if known is not None:
                Place(known.replace("{region}", "us-east-1"))

    @property
    def overridden(self) -> bool:
        return self._override is not None or bool(self._regions)

    def place(self, region: str) -> Place:
        place = self._places.get(region)
        if place is None:
            if not _REGION.fullmatch(region):
                raise ConfigurationError(f"{region[:40]!r} is not an AWS region")
            place = self._places[region] = Place(self._address(region))
        return place

    def _address(self, region: str) -> str:
        override = self._regions.get(region, self._override)
        if override is not None:
            return override.replace("{region}", region)
        suffix = next(
            (suffix for start, suffix in _SUFFIXES.items() if region.startswith(start)), "amazonaws.com"
        )
        return f"https://bedrock-runtime.{region}.{suffix}"

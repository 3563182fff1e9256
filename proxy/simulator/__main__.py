"""``python -m proxy.simulator``: see README.md."""

import argparse
from pathlib import Path
from typing import Any

from proxy.simulator.config import load_file
from proxy.simulator.serve import serve


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="simulator", description="A Bedrock runtime that keeps its own bill."
    )
    command.add_argument("--host", default="127.0.0.1")
    command.add_argument("--port", type=int, default=0, help="0 takes a free port")
    command.add_argument("--speed", type=float, default=0.0, help="tokens per second; 0 answers at once")
    command.add_argument("--first-byte-ms", type=float)
    command.add_argument("--tokens-per-event", type=int)
    command.add_argument("--region")
    command.add_argument("--verify-secret", help="verify SigV4 signatures with this secret access key")
    command.add_argument("--no-auth", dest="require_auth", action="store_false", default=None)
    command.add_argument(
        "--canned", action="store_true", default=None, help="keep totals only, for load tests"
    )
    command.add_argument("--strict-llama", action="store_true", default=None)
    command.add_argument("--config", type=Path, help="YAML file with any setting, quotas and catalog")
    command.add_argument("--tls-certificate")
    command.add_argument("--tls-key")
    command.add_argument("--parent", type=int, help="end together with this process")
    return command


def main(arguments: list[str] | None = None) -> None:
    given: dict[str, Any] = {
        name: value for name, value in vars(parser().parse_args(arguments)).items() if value is not None
    }
    path = given.pop("config", None)
    from_file = load_file(path) if path is not None else {}
    serve(**{**from_file, **given})


if __name__ == "__main__":
    main()

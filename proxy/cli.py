"""The `tollhouse` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from proxy import __version__, settings
from proxy.commands import prices as price_commands
from proxy.errors import ConfigurationError

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    command: Command | None = getattr(options, "command", None)
    if command is None:
        parser.print_help()
        return 2
    try:
        return command(options)
    except ConfigurationError as error:
        print(f"tollhouse: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tollhouse", description="Hard cost controls for Amazon Bedrock.")
    parser.add_argument("--version", action="version", version=f"tollhouse {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="")
    run = _verb(verbs, "run", "serve with private Postgres, Valkey and simulator", _run)
    run.add_argument("--directory", type=Path, default=Path(".run"), help="where everything is kept (.run)")
    _verb(verbs, "serve", "serve the proxy (settings name the servers)", _serve)
    _verb(verbs, "worker", "run the sweeper, the rollups and the other background work", _worker)
    _verb(verbs, "migrate", "bring the database to this version's schema", _migrate)
    _verb(verbs, "settings", "list every setting with its default", _settings)
    recover = _verb(verbs, "recover", "look at the ledger after a failover, and admit calls again", _recover)
    recover.add_argument("--accept", action="store_true", help="open admission on the server's timeline")
    compare = _verb(verbs, "reconcile", "compare the ledger's tokens with CloudWatch's, by day", _reconcile)
    compare.add_argument("--days", type=int, default=7, help="whole UTC days before today (7)")
    compare.add_argument("--json", action="store_true", help="JSON instead of a table")
    _simulate_verb(verbs)
    _replay_verb(verbs)
    _tls_verb(verbs)
    prices = price_commands.add_verbs(verbs, _verb)
    _verb(verbs, "rewrap", "seal every secret anew after the master key changed", _rewrap)
    _desk_verbs(verbs, prices)
    return parser


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, about: str, command: Command
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
    parser.set_defaults(command=command)
    return parser


def _simulate_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _verb(verbs, "simulate", "serve a Bedrock that keeps its own bill", _simulate)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 lets the system choose")
    parser.add_argument("--first-byte-ms", type=float, default=0.0, help="delay of the first byte")
    parser.add_argument("--tokens-per-second", type=float, default=0.0, help="pace of streams; 0: at once")


def _replay_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _verb(verbs, "replay", "drive a running proxy with a recorded trace", _replay)
    parser.add_argument(
        "trace", type=Path, help="CSV, plain or gzip: t_s, input_tokens, output_tokens[, model, client]"
    )
    parser.add_argument("--tenants", type=int, default=3)
    parser.add_argument("--speed", type=float, default=60.0, help="seconds of the trace per second")
    parser.add_argument("--limit", type=int, default=2000, help="most requests; 0 for the whole trace")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--model", action="append", default=[], help="model ids to use, in turn")


def _desk_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser], prices: Any) -> None:
    """Nouns of the admin REST, each with its verbs; `prices` is there already."""
    from proxy.commands import policies, rest
    from proxy.commands.verbs import NOUNS

    nouns = {
        noun: verbs.add_parser(noun, help=about, description=about).add_subparsers(metavar="")
        for noun, about in NOUNS.items()
    } | {"prices": prices}
    rest.add_verbs(nouns)
    policies.add_verbs(nouns["policies"])
    validate = _verb(nouns["reports"], "validate", "check a FOCUS file", _validate)
    validate.add_argument("file", type=Path)


def _tls_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    group = verbs.add_parser("tls", help="certificates of one's own").add_subparsers(metavar="")
    init = _verb(group, "init", "make a local CA and a server certificate", _tls_init)
    init.add_argument("folder", nargs="?", type=Path, default=Path(".run/tls"), help="where (.run/tls)")
    init.add_argument("--host", action="append", default=[], help="a name or address it is reached by")
    init.add_argument("--days", type=int, default=397, help="life of the server certificate (397)")


# Imports are inside the commands: each starts in the time its own parts need.


def _run(options: argparse.Namespace) -> int:
    from proxy.runner import run

    return run(settings.load(), options.directory)


def _serve(_: argparse.Namespace) -> int:
    import tempfile

    loaded = settings.load()
    with tempfile.TemporaryDirectory(prefix="tollhouse-metrics-") as directory:
        if settings.multiprocess_dir() is None:
            settings.set_multiprocess_dir(directory)
        from proxy.server import serve  # after the directory is named: it imports the metrics

        return serve(loaded)


def _worker(_: argparse.Namespace) -> int:
    from proxy.background import work

    return work(settings.load())


def _migrate(_: argparse.Namespace) -> int:
    from proxy.postgres.migrate import upgrade

    loaded = settings.load()
    owner = _required(loaded.owner_url, "TOLLHOUSE_DATABASE_URL")
    upgrade(owner, application_role=settings.application_role(loaded))
    print("the database is at this version's schema")
    return 0


def _recover(options: argparse.Namespace) -> int:
    import asyncio

    from proxy.postgres.failover import recover

    loaded = settings.load()
    url = _required(loaded.owner_url, "TOLLHOUSE_DATABASE_URL")
    found = asyncio.run(recover(url, accept=options.accept))
    print(f"accepted timeline {found.accepted}, server's timeline {found.current}")
    print(f"newest admission in the ledger: {found.newest or 'none within a day'}")
    for line in found.broken:
        print(f"broken: {line}")
    if found.accepted == found.current:
        print("admission is open")
    elif options.accept:
        print("admission is open again; calls sent after the newest admission above may have no row")
    else:
        print(
            "admission is closed: commits after the newest one above may be lost; `tollhouse recover --accept` opens it"
        )
        return 1
    return 0


def _reconcile(options: argparse.Namespace) -> int:
    import asyncio

    from proxy.background import reconcile
    from proxy.domain.evidence import EvidenceAwayError
    from proxy.errors import BankAway
    from proxy.worker.reconciliation import as_json, as_table

    loaded = settings.load()
    _required(loaded.database_url, "TOLLHOUSE_DATABASE_URL")
    try:
        lines = asyncio.run(reconcile(loaded, max(options.days, 1)))
    except (BankAway, EvidenceAwayError) as error:
        print(f"tollhouse: {error}", file=sys.stderr)
        return 1
    print(as_json(lines) if options.json else as_table(lines))
    return 1 if any(line.verdict == "unexplained" for line in lines) else 0


def _settings(_: argparse.Namespace) -> int:
    for name, default, about in settings.describe():
        print(f"{name:<40} {about} [{default}]")
    return 0


def _simulate(options: argparse.Namespace) -> int:
    from proxy.simulator.serve import serve

    serve(
        options.host,
        options.port,
        first_byte_ms=options.first_byte_ms,
        tokens_per_second=options.tokens_per_second,
    )
    return 0


def _replay(options: argparse.Namespace) -> int:
    from proxy import replay
    from proxy.adminclient import Access

    access = Access.find()
    return replay.main(
        options.trace,
        proxy_url=access.url,
        admin_key=access.key,
        simulator_url=access.simulator_url,
        tenants=options.tenants,
        speed=options.speed,
        limit=options.limit or None,
        concurrency=options.concurrency,
        models=options.model,
        output=print,
    )


def _tls_init(options: argparse.Namespace) -> int:
    from proxy import tls

    files = tls.init(options.folder, options.host, days=options.days)
    print(f"""# the server; `tollhouse run` then writes the clients' part into client.env
export TOLLHOUSE_TLS_CERTIFICATE={files.certificate}
export TOLLHOUSE_TLS_KEY={files.key}
# clients
export AWS_CA_BUNDLE={files.bundle.resolve()}
export SSL_CERT_FILE={files.bundle.resolve()}
export NODE_EXTRA_CA_CERTS={files.ca.resolve()}""")
    return 0


def _rewrap(options: argparse.Namespace) -> int:
    from proxy.commands.keyring import run_rewrap

    return run_rewrap(options)


def _validate(options: argparse.Namespace) -> int:
    from proxy.commands.keyring import run_validate

    return run_validate(options)


def _required(value: str, name: str) -> str:
    if not value:
        raise ConfigurationError(f"{name} is not set")
    return value


if __name__ == "__main__":
    sys.exit(main())

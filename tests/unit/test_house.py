"""The rules of the house, read from the source: who may import whom, how long things get, what stays out.

A rule that bars something good is changed here, in the open, with its reason.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PROXY = REPOSITORY / "proxy"
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60

#: Longer than the rule on purpose: "file" or "file:function" -> why splitting would make it worse.
ARGUED: dict[str, str] = {}

# Who may import whom. A room is a package or module directly below proxy/; it may always import itself.
PURE = {"domain"}
PORTS = PURE | {"errors", "ports"}
# Mechanisms without a policy of their own: they know no database, no Bedrock and no web.
MECHANISMS = {"batcher", "clock", "deadline", "exemplars", "failpoints", "keys", "tally"}
CORE = {
    "answer",
    "breaker",
    "call",
    "counting",
    "advice",
    "hits",
    "directory",
    "discovery",
    "exchange",
    "flight",
    "offer",
    "pipeline",
    "policyfile",
    "recorder",
    "reservation",
    "ruling",
    "settler",
    "sharing",
    "sites",
    "telemetry",
    "spent",
    "throughputs",
}
ADAPTER = PORTS | MECHANISMS
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "domain": {"errors"},
    "ports": PURE | {"errors"},
    "clock": set(),
    "deadline": set(),
    "exemplars": set(),
    "tally": {"exemplars"},
    "batcher": PORTS | {"clock"},
    "keys": PORTS | {"clock"},
    "failpoints": {"errors"},
    "settings": {"errors"},
    **dict.fromkeys(CORE, PORTS | MECHANISMS | CORE),
    "redis": ADAPTER,
    "postgres": ADAPTER,
    "bedrock": ADAPTER,
    "web": PORTS | MECHANISMS | CORE | {"settings"},
    "worker": PORTS | MECHANISMS | CORE | {"settings"},
    "testing_bank": PORTS | {"clock"},
    "testing_cache": PORTS,
    "testing_upstream": PORTS,
    "testing": PORTS | MECHANISMS | CORE | {"testing_limiter"},
    "testing_limiter": PORTS,
    "adminclient": {"errors", "settings"},
    "tls": {"errors"},
    "replay": {"adminclient", "errors", "settings"},
    "pricefile": PURE | {"errors"},
    "embedded": {"errors"},
    "simulator": set(),
    "tracing": PORTS | MECHANISMS | CORE,
}
#: Composition roots: they know every room, and no other room knows them.
ROOTS = {"app", "background", "cli", "commands", "runner", "seed", "server", "__main__"}

#: Third-party package -> the rooms that may import it. AWS's SDK is barred from the composition roots too.
BORDERS: dict[str, set[str]] = {
    # `replay` is a client: it drives the proxy with the stock SDK
    "boto3": {"bedrock", "replay"},
    "botocore": {"bedrock", "replay"},
    "redis": {"redis"} | ROOTS,
    "asyncpg": {"postgres"} | ROOTS,
    "sqlalchemy": {"postgres"} | ROOTS,
    "alembic": {"postgres"} | ROOTS,
    "granian": {"simulator"} | ROOTS,
    "opentelemetry": {"tracing"},
}
#: Reading a clock, the environment, chance or the outside world makes the domain untestable by table.
IMPURE = {
    "asyncio",
    "http",
    "io",
    "os",
    "pathlib",
    "random",
    "secrets",
    "socket",
    "subprocess",
    "threading",
    "time",
}
IMPURE_CALLS = {"now", "utcnow", "today", "uuid1", "uuid4", "open", "print", "input"}

ROOT_NAMES = {
    "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "Dockerfile", "LICENSE", "Makefile", "README.md", "SECURITY.md",
    "bench", "docs", "helm", "migrations", "policies", "proxy", "pyproject.toml", "requirements.lock",
    "requirements.runtime.lock", "tests",
}  # fmt: skip
MADE_NAMES = {"build", "dist", "node_modules", "__pycache__"}
ROOMS_NOBODY_FINDS = {"base", "common", "core", "helpers", "lib", "misc", "shared", "util", "utils"}

TEXT_SUFFIXES = {
    "", ".cel", ".cfg", ".csv", ".html", ".ini", ".js", ".json", ".lock", ".lua", ".mako", ".md", ".mjs", ".pml", ".py",
    ".sh", ".sql", ".tf", ".toml", ".ts", ".txt", ".yaml", ".yml",
}  # fmt: skip
#: What must not stand in any file, each split so that this file does not hold it.
FORBIDDEN = {
    "host of a package registry": r"py"
    r"pi\.org|python"
    r"hosted\.org|registry\.npm"
    r"js|crates"
    r"\.io|deb\.deb"
    r"ian",
    "path of one machine": r"(?<![\w.$/])/(?:wo" r"rk|fa" r"rm)/|/ro" r"ot/(?!\.aws)",
    "conflict marker": r"^(?:<{7}|>{7}) ",
    "note to self": r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b",
    "AWS key that is neither the documentation's nor one letter": r"\bA(?:K|S)IA(?!IOSFODNN7EXAMPLE)(?!(.)\1{9})[A-Z2-7]{16}\b",
    "private key": r"-----BEGIN (?:[A-Z]+ )?PRIV" r"ATE KEY-----",
}

SOURCES = sorted(PROXY.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(PROXY).parts[0]
    return first.removesuffix(".py")


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(source: str, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import, at module level or not; relative ones resolved in `package`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, module
            if module == "proxy":
                for alias in node.names:
                    if not alias.name.startswith("__"):
                        yield node.lineno, f"proxy.{alias.name}"


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    package = path.relative_to(REPOSITORY).with_suffix("").parts[:-1]
    return imported(path.read_text(encoding="utf-8"), package)


def allowed(room: str) -> set[str]:
    everything = set(ARROWS) | ROOTS
    return everything if room in ROOTS else ARROWS[room] | {room}


def breaches(room: str, imports: Iterable[tuple[int, str]]) -> Iterator[str]:
    """`line: what is wrong` for every import that `room` may not have."""
    for line, module in imports:
        parts = module.split(".")
        if parts[0] == "proxy" and len(parts) > 1 and parts[1] not in allowed(room):
            yield f"{line}: {room} may not import {module}"
        elif room not in BORDERS.get(parts[0], {room}):
            yield f"{line}: only {', '.join(sorted(BORDERS[parts[0]] - ROOTS))} may import {parts[0]}"


def test_every_room_has_its_arrows():
    rooms = {room_of(path) for path in SOURCES} - {"__init__"}
    assert rooms <= set(ARROWS) | ROOTS, "a new room: say in ARROWS what it may import"


def test_imports_follow_the_arrows():
    found = [
        f"{name_of(path)}:{breach}"
        for path in SOURCES
        if (room := room_of(path)) != "__init__"
        for breach in breaches(room, imports_of(path))
    ]
    assert not found, "\n".join(found)


def test_the_arrows_have_no_cycle_outside_the_core():
    for room, targets in ARROWS.items():
        for target in targets - CORE - {room}:
            assert room not in ARROWS[target] or room in CORE, f"{room} <-> {target}"


def test_the_private_servers_need_nothing_but_the_standard_library():
    for path in SOURCES:
        if room_of(path) == "embedded":
            for line, module in imports_of(path):
                top = module.split(".")[0]
                assert top == "proxy" or top in sys.stdlib_module_names, f"{name_of(path)}:{line}: {module}"


def attribute_names(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """(line, object, attribute) of every plain `object.attribute`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.lineno, node.value.id, node.attr


def test_only_settings_reads_the_environment():
    banned = {("os", "environ"), ("os", "environb"), ("os", "getenv"), ("os", "putenv"), ("os", "unsetenv")}
    for path in SOURCES:
        if room_of(path) == "settings":
            continue
        tree = tree_of(path)
        hits = [
            f"{line}: {a}.{b}"
            for line, a, b in attribute_names(tree)
            if (a, b) in banned or b == "expandvars"
        ]
        hits += [
            f"{node.lineno}: from os import {alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "os"
            for alias in node.names
            if ("os", alias.name) in banned
        ]
        assert not hits, f"{name_of(path)}: {hits}"


@pytest.mark.parametrize("path", [p for p in SOURCES if room_of(p) == "domain"], ids=name_of)
def test_the_domain_is_pure(path):
    for line, module in imports_of(path):
        assert module.split(".")[0] not in IMPURE, f"{name_of(path)}:{line}: imports {module}"
    for node in ast.walk(tree_of(path)):
        assert not isinstance(
            node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith | ast.Global
        ), f"{name_of(path)}:{node.lineno}: awaits or keeps state"
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            assert called not in IMPURE_CALLS, f"{name_of(path)}:{node.lineno}: calls {called}"


def test_money_is_never_a_float():
    """In the domain no name that speaks of money is annotated float."""
    money = re.compile(r"cost|price|nano|usd|limit_usd|ceiling|settled|reserved|headroom|spent|held")
    for path in SOURCES:
        if room_of(path) != "domain":
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.AnnAssign | ast.arg) and isinstance(node.annotation, ast.Name):
                target = node.arg if isinstance(node, ast.arg) else ast.unparse(node.target)
                where = f"{name_of(path)}:{node.lineno}: {target}"
                assert node.annotation.id != "float" or not money.search(target), where


def too_long() -> Iterator[str]:
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > FILE_LINES_MAX:
            yield name_of(path)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    yield f"{name_of(path)}:{node.name}"


def test_files_and_functions_stay_short_or_argued():
    found = set(too_long())
    assert not found - set(ARGUED), (
        f"over {FILE_LINES_MAX} or {FUNCTION_LINES_MAX} lines: split, or argue in ARGUED"
    )
    assert not set(ARGUED) - found, "no longer too long: drop it from ARGUED"
    assert all(len(reason) > 20 for reason in ARGUED.values())


#: where refusals of calls are raised, thousands a second
_REFUSING = (
    "pipeline.py",
    "reservation.py",
    "exchange.py",
    "offer.py",
    "ruling.py",
    "sharing.py",
    "domain",
    "web",
)


def named_and_raised() -> Iterator[str]:
    """Where a function raises what it has a name for. The exception's traceback holds the function's frame and the
    frame the exception: a cycle, which only the garbage collector ends, and it stops the worker to do so.
    """
    for path in SOURCES:
        if path.relative_to(PROXY).parts[0] not in _REFUSING:
            continue
        for function in ast.walk(tree_of(path)):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            bound = {
                name.id for node in ast.walk(function) if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr)
                for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
                for name in ast.walk(target) if isinstance(name, ast.Name)
            }  # fmt: skip
            for node in ast.walk(function):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name) and node.exc.id in bound:
                    yield f"{name_of(path)}:{node.lineno}: raises {node.exc.id}, which it keeps"


def test_refusals_leave_nothing_to_collect():
    assert not list(named_and_raised())


def test_the_root_is_a_table_of_contents():
    present = {
        path.name
        for path in REPOSITORY.iterdir()
        if not path.name.startswith(".") and path.name not in MADE_NAMES and path.suffix != ".egg-info"
    }
    assert present <= ROOT_NAMES
    assert {"Dockerfile", "Makefile", "README.md", "pyproject.toml", "proxy", "tests"} <= present


def test_the_architecture_page_names_every_module_and_room():
    page = (REPOSITORY / "ARCHITECTURE.md").read_text()
    places = {path.name for path in (REPOSITORY / "proxy").glob("*.py") if not path.name.startswith("__")}
    places |= {f"{path.parent.name}/" for path in (REPOSITORY / "proxy").glob("*/__init__.py")}
    assert {place for place in places if place not in page} == set()


def test_no_room_is_a_drawer():
    assert not {room_of(path) for path in SOURCES} & ROOMS_NOBODY_FINDS, "name it after what it does"


def text_files() -> Iterator[Path]:
    for top in sorted(REPOSITORY.iterdir()):
        if top.name in MADE_NAMES or (top.name.startswith(".") and top.name not in {".ci", ".dockerignore"}):
            continue
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.is_file() and path.suffix in TEXT_SUFFIXES and not MADE_NAMES & set(path.parts):
                yield path


def test_nothing_forbidden_stands_anywhere():
    patterns = [(what, re.compile(pattern, re.MULTILINE)) for what, pattern in FORBIDDEN.items()]
    hits = []
    for path in text_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for what, pattern in patterns:
            hits += [
                f"{name_of(path)}:{text.count(chr(10), 0, m.start()) + 1}: {what}"
                for m in pattern.finditer(text)
            ]
    assert not hits, "\n".join(hits)


@pytest.mark.parametrize(
    ("room", "source", "breach"),
    [
        ("domain", "import proxy.ports", "domain may not import"),
        ("domain", "from proxy import ports", "domain may not import"),
        ("redis", "from proxy.postgres.bank import Bank", "redis may not import"),
        ("postgres", "from ..bedrock import client", "postgres may not import"),
        ("simulator", "def f():\n    from proxy.domain import usage", "simulator may not import"),
        ("web", "import boto3.session", "only bedrock, replay may import boto3"),
        ("web", "from proxy.app import build", "web may not import"),
        ("postgres", "import asyncpg\nfrom proxy.errors import Invalid\nfrom . import engine", None),
    ],
)
def test_the_arrow_test_sees_a_breach(room, source, breach):
    found = list(breaches(room, imported(source, ("proxy", room))))
    assert [breach in f for f in found] == [True] if breach else not found

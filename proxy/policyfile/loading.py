"""A folder of policy files made into one `PolicySet`, or into the list of everything wrong with it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from proxy.domain.catalogue import Model
from proxy.domain.pricing import PriceBook
from proxy.domain.rates import CapacityPrice, PriceVersion
from proxy.domain.rules import Rule
from proxy.errors import ConfigurationError, TollhouseError
from proxy.policyfile.models import read_models
from proxy.policyfile.plans import Plan, read_plan
from proxy.policyfile.policyset import PolicySet
from proxy.policyfile.prices import read_prices
from proxy.policyfile.routes import Routes, read_routes
from proxy.policyfile.rules import Example, read_rules
from proxy.policyfile.schema import Reader
from proxy.policyfile.strict import MAX_BYTES, Node, Problem, read

KINDS = ("models", "prices", "plans", "routes", "rules")
MAX_FILES = 1_000
_SUFFIXES = frozenset({".yaml", ".yml"})
_TEXTS = frozenset({".md", ".txt"})
#: stands for a plan whose file could not be read
_UNREAD = Plan(name="", version="")
_FALLBACK_REGION = "us-east-1"
#: unix seconds after every price version
_LATEST = 2.0**40


def directory(configured: str | Path = "") -> Path:
    """The folder to read: the configured one, else the packaged one, else that of the checkout."""
    if configured:
        return Path(configured)
    package = Path(__file__).resolve().parent.parent
    packaged = package / "_data" / "policies"
    return packaged if packaged.is_dir() else package.parent / "policies"


def load(folder: str | Path = "", *, region: str | None = None) -> PolicySet:
    """All policies of a folder. `region` replaces the files' default Region.

    Raises `ConfigurationError` naming every error when there is one.
    """
    problems: list[Problem] = []
    policies = _Loader(directory(folder), problems).policies(region)
    if policies is None or problems:
        listed = "\n".join(str(problem) for problem in sorted(problems))
        raise ConfigurationError(f"the policy files have {len(problems)} errors:\n{listed}")
    return policies


def check(folder: str | Path = "") -> list[Problem]:
    """Every error in a folder, in the order of files and lines. Empty when `load` would succeed."""
    problems: list[Problem] = []
    _Loader(directory(folder), problems).policies(None)
    return sorted(problems)


@dataclass(slots=True)
class _Loader:
    folder: Path
    problems: list[Problem]
    models: dict[str, Model] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    versions: list[PriceVersion] = field(default_factory=list)
    capacity: list[CapacityPrice] = field(default_factory=list)
    routes: Routes = field(default_factory=Routes)
    rules: list[Rule] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)

    def policies(self, region: str | None) -> PolicySet | None:
        files = self._files()
        for kind in KINDS:
            for path in files[kind]:
                shown = f"{kind}/{path.name}"
                node = read(path, shown, self.problems)
                if node is not None:
                    self._read(kind, path, node, Reader(shown, self.problems))
                elif kind == "plans":
                    self.plans.setdefault(path.stem, _UNREAD)
        self._complete()
        if self.problems:
            return None
        policies = PolicySet(
            version=_digest(files),
            models=self.models,
            prices=PriceBook(self.versions),
            plans=self.plans,
            routes=self.routes,
            default_region=region or self.routes.default_region or _FALLBACK_REGION,
            capacity=tuple(self.capacity),
            rules=tuple(self.rules),
            examples=tuple(self.examples),
        )
        self._check_routes(policies)
        self._check_rules(policies)
        return policies

    def _read(self, kind: str, path: Path, node: Node, reader: Reader) -> None:
        if kind == "models":
            read_models(node, reader, self.models)
        elif kind == "plans":
            self.plans[path.stem] = read_plan(node, reader, path.stem, self.models)
        elif kind == "routes":
            read_routes(node, reader, self.routes, self.models)
        elif kind == "rules":
            read_rules(node, reader, self.rules, self.examples)
        else:
            self._read_prices(path, node, reader)

    def _read_prices(self, path: Path, node: Node, reader: Reader) -> None:
        try:
            date.fromisoformat(path.stem[:10])
        except ValueError:
            reader.fail(node, "a file of prices/ is named by its date, such as 2026-11-23.yaml")
        read_one = read_prices(node, reader, path.stem, self.models)
        if read_one is None:
            return
        version, capacity = read_one
        same = [known.id for known in self.versions if known.effective_from == version.effective_from]
        if same:
            reader.fail(node, f"prices/{same[0]}.yaml is effective from the same time")
        self.versions.append(version)
        self.capacity = list(capacity) or self.capacity

    def _complete(self) -> None:
        for kind, there in (("models", self.models), ("prices", self.versions), ("plans", self.plans)):
            if not there and not any(p.path.startswith(f"{kind}/") for p in self.problems):
                self.problems.append(Problem(kind, 1, 1, f"there are no {kind} in this folder"))
        if self.plans and "default" not in self.plans:
            self.problems.append(
                Problem("plans", 1, 1, "there is no plans/default.yaml, which new tenants get")
            )

    def _check_routes(self, policies: PolicySet) -> None:
        for spec in self.routes.routes.values():
            try:
                route = policies.resolve(spec.name)
                for place, target in zip(spec.places, route.targets, strict=True):
                    line = place.line
                    priced = policies.priced(route.model, target)
                    priced.rates(_LATEST, target.tier or "default", target.latency or "standard")
            except TollhouseError as error:
                self.problems.append(Problem(spec.path, line, 1, str(error)))

    def _check_rules(self, policies: PolicySet) -> None:
        """A model that a rule puts in another's place must be one, and have a price."""
        for rule in self.rules:
            if rule.effect == "substitute":
                self._check_name(policies, rule.text, rule.path, rule.line)
        for example in self.examples:
            self._check_name(policies, example.asked.model, example.path, example.line)

    def _check_name(self, policies: PolicySet, name: str, path: str, line: int) -> None:
        try:
            route = policies.resolve(name)
            for target in route.targets:
                policies.priced(route.model, target)
        except TollhouseError as error:
            self.problems.append(Problem(path, line, 1, str(error)))

    def _files(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {kind: [] for kind in KINDS}
        if not self.folder.is_dir():
            self.problems.append(Problem(str(self.folder), 1, 1, "there is no such folder"))
            return found
        for path in sorted(self.folder.iterdir()):
            if path.name not in KINDS and not path.name.startswith(".") and path.suffix not in _TEXTS:
                told = f"policies are in the folders {', '.join(KINDS)} and nowhere else"
                self.problems.append(Problem(path.name, 1, 1, told))
        for kind in KINDS:
            for path in sorted((self.folder / kind).glob("*")):
                if path.name.startswith("."):
                    continue
                if not path.is_file():
                    self.problems.append(Problem(f"{kind}/{path.name}", 1, 1, "this is no file"))
                elif path.suffix not in _SUFFIXES:
                    self._skip(kind, path)
                elif len(found[kind]) < MAX_FILES:
                    found[kind].append(path)
        return found

    def _skip(self, kind: str, path: Path) -> None:
        if path.suffix not in _TEXTS:
            self.problems.append(Problem(f"{kind}/{path.name}", 1, 1, "policy files end in .yaml"))


def _digest(files: dict[str, list[Path]]) -> str:
    """Twelve hex digits over names and bytes of every file; unreadable ones count by their name."""
    seen = hashlib.sha256()
    for kind in KINDS:
        for path in files[kind]:
            seen.update(f"{kind}/{path.name}\0".encode())
            try:
                with path.open("rb") as file:
                    seen.update(hashlib.sha256(file.read(MAX_BYTES + 1)).digest())
            except OSError:
                seen.update(b"?")
    return seen.hexdigest()[:12]


class Watch:
    """Policies that follow their folder. `reload_if_changed` is called from a timer of the caller's."""

    def __init__(self, folder: str | Path = "", *, region: str | None = None) -> None:
        self._folder = directory(folder)
        self._region = region
        self._stamp = self._look()
        self.current = load(self._folder, region=region)
        #: errors of the last change that was not taken over, empty when the files in force are good
        self.problems: tuple[Problem, ...] = ()

    def reload_if_changed(self) -> PolicySet | None:
        """A new set when files changed and all are good; it becomes `current`. None otherwise: then
        `problems` says whether a change waits for its errors to be mended. Never raises.
        """
        stamp = self._look()
        if stamp == self._stamp:
            return None
        problems: list[Problem] = []
        policies = _Loader(self._folder, problems).policies(self._region)
        if stamp != self._look():  # still being written
            return None
        self._stamp = stamp
        self.problems = tuple(sorted(problems))
        if policies is None or problems or policies.version == self.current.version:
            return None
        self.current = policies
        return policies

    def _look(self) -> tuple[tuple[str, int, int, int], ...]:
        seen = []
        for kind in KINDS:
            for path in sorted((self._folder / kind).glob("*")):
                try:
                    stat = path.stat()
                except OSError:
                    continue
                seen.append((f"{kind}/{path.name}", stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return tuple(seen)

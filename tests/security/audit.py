"""`make audit`: what the product is made of, and whether anything in the tree should not be there.

Checks that need nothing but the tree and the virtual environment: licences of every locked package, hashes
of every pinned file, secrets in the tree, the contents of the wheel, an SBOM (CycloneDX 1.6) of the runtime.
Known vulnerabilities need a database on the network: `pip-audit` is asked when it can be run, and its
absence is said aloud. Ends with 1 when a check failed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
LOCK, RUNTIME_LOCK = "requirements.lock", "requirements.runtime.lock"
SBOM = REPOSITORY / ".cache" / "sbom.cdx.json"

_PINNED = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[\w,-]+\])?==([^\s;\\]+)", re.MULTILINE)
#: strong copyleft, which would reach the whole product; LGPL and MPL reach their own files only
_REACHING = re.compile(
    r"\bA?GPL|Affero|(?<!Lesser )General Public License(?! v2 or later \(LGPL)|\bSSPL|\bBUSL", re.IGNORECASE
)
_WEAK = re.compile(r"\bLGPL|Lesser General Public|\bMPL|Mozilla Public", re.IGNORECASE)
#: package -> why its licence is no obstacle
ARGUED = {
    "pathspec": "MPL-2.0 reaches its own files only; not in the runtime",
    "certifi": "MPL-2.0 reaches its own files only, which are used unchanged",
    "hypothesis": "MPL-2.0 reaches its own files only; not in the runtime",
    "tqdm": "MPL-2.0 and MIT, file by file; not in the runtime",
    "orjson": "MPL-2.0 or the others it is offered under; used unchanged",
}
SECRETS = {
    "Tollhouse key": re.compile(r"\btha?_[a-z][a-z0-9]{1,11}_[0-9A-Za-z]{51}\b"),
    "AWS access key id": re.compile(r"\b(?:AKIA|ASIA)(?!IOSFODNN7EXAMPLE)(?!(.)\1{9})[A-Z2-7]{16}\b"),
    "private key": re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE" r" KEY-----"),
    "GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36}\b"),
    "Slack token": re.compile(r"\bxox[abprs]-[0-9A-Za-z-]{10,}"),
    "OpenAI key": re.compile(r"\bsk-(?:proj-)?[A-Za-z0-9]{40,}\b"),
    "JWT": re.compile(r"\beyJ[A-Za-z0-9_-]{20,}\.eyJ[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{20,}"),
}
#: files whose secrets are samples, each made for no server; the fuzzers' keys have fixed characters
SAMPLES = ("tests/fuzz/corpus/keys/",)


def pinned(lock: str) -> dict[str, str]:
    text = (REPOSITORY / lock).read_text()
    return {name.lower().replace("_", "-"): version for name, version in _PINNED.findall(text)}


def licence(name: str) -> str:
    """As the installed package says it; empty when it is not installed here."""
    try:
        about: Any = metadata.metadata(name)  # an email.message.Message, whose type says less
    except metadata.PackageNotFoundError:
        return ""
    said = about.get("License-Expression") or ""
    classified = [
        c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or [] if c.startswith("License ::")
    ]
    return said or ", ".join(classified) or (about.get("License") or "unknown").strip().splitlines()[0][:80]


def licences() -> Iterator[str]:
    """Problems, after listing every package."""
    runtime = pinned(RUNTIME_LOCK)
    for name, version in sorted(pinned(LOCK).items()):
        said = licence(name)
        where = "runtime" if name in runtime else "development"
        print(f"  {name:<32}{version:<16}{where:<13}{said or 'not installed on this platform'}")
        if name in ARGUED:
            continue
        if _WEAK.search(said):
            print(f"    {name}: weak copyleft, reaches its own files only")
        elif _REACHING.search(said):
            yield f"{name} {version} is under {said}: argue it in ARGUED or replace it"
        elif said == "unknown":
            yield f"{name} {version} names no licence"


def hashes() -> Iterator[str]:
    """Every requirement of both locks has a hash, and the Makefile installs by them."""
    for lock in (LOCK, RUNTIME_LOCK):
        for block in re.split(r"\n(?=[A-Za-z0-9])", (REPOSITORY / lock).read_text()):
            found = _PINNED.match(block)
            if found and "--hash=sha256:" not in block:
                yield f"{lock}: {found[1]} has no hash"
    for name in ("Makefile", "Dockerfile"):
        text = (REPOSITORY / name).read_text()
        installs = [
            line
            for line in text.splitlines()
            if re.search(r"(pip|uv) (pip )?install|pip (download|wheel)", line)
        ]
        for line in installs:
            if (
                not re.search(r"--require-hashes|--no-deps|--no-index|\$\(UV\)|uv==", line)
                and "\\" not in line
            ):
                yield f"{name} installs without hashes: {line.strip()}"


def tracked() -> Iterator[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    ).stdout
    for name in listed.decode().split("\0"):
        path = REPOSITORY / name
        if name and path.is_file() and path.stat().st_size < 5_000_000:
            yield path


def secrets() -> Iterator[str]:
    for path in tracked():
        name = path.relative_to(REPOSITORY).as_posix()
        if name.startswith(SAMPLES):
            continue
        text = path.read_bytes().decode("utf-8", "replace")
        for kind, pattern in SECRETS.items():
            for found in pattern.finditer(text):
                line = text.count("\n", 0, found.start()) + 1
                yield f"{name}:{line}: {kind} {found[0][:12]}..."


def wheel() -> Iterator[str]:
    """Builds it, offline, and looks inside: code of the project and its data, nothing that runs at start."""
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
                 "--disable-pip-version-check", "--wheel-dir", folder, str(REPOSITORY)]  # fmt: skip
        done = subprocess.run(build, capture_output=True, text=True, check=False)
        if done.returncode:
            yield f"the wheel cannot be built: {done.stderr.strip()[-300:]}"
            return
        (path,) = Path(folder).glob("*.whl")
        names = zipfile.ZipFile(path).namelist()
    for name in names:
        if name.endswith((".pth", ".so", ".pyc", ".env", ".pem", ".key")) or not re.match(
            r"(proxy/|tollhouse-[^/]+\.dist-info/)", name
        ):
            yield f"the wheel has {name}"
    print(f"  {len(names)} files, none of them run at start")


def sbom() -> Iterator[str]:
    """CycloneDX 1.6 of the runtime lock, with the hashes that are installed by."""
    text = (REPOSITORY / RUNTIME_LOCK).read_text()
    components: list[dict[str, Any]] = []
    for block in re.split(r"\n(?=[A-Za-z0-9])", text):
        found = _PINNED.match(block)
        if found is None:
            continue
        name, version = found[1].lower(), found[2]
        said = licence(name)
        components.append({
            "type": "library", "name": name, "version": version, "purl": f"pkg:pypi/{name}@{version}",
            "bom-ref": f"{name}@{version}",
            "hashes": [{"alg": "SHA-256", "content": h} for h in re.findall(r"--hash=sha256:([0-9a-f]{64})", block)],
            **({"licenses": [{"license": {"name": said}}]} if said else {}),
        })  # fmt: skip
    version = metadata.version("tollhouse")
    product = {"type": "application", "name": "tollhouse", "version": version, "bom-ref": "tollhouse"}
    document = {
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "metadata": {"component": product},
        "components": components,
        "dependencies": [{"ref": "tollhouse", "dependsOn": [c["bom-ref"] for c in components]}],
    }  # fmt: skip
    SBOM.parent.mkdir(exist_ok=True)
    SBOM.write_text(json.dumps(document, indent=1) + "\n")
    print(f"  {len(components)} components in {SBOM.relative_to(REPOSITORY)}")
    if not components or any(not component["hashes"] for component in components):
        yield "the SBOM has components without hashes"


def vulnerabilities() -> Iterator[str]:
    tool = shutil.which("pip-audit") or shutil.which(
        "pip-audit", path=str(REPOSITORY / ".cache" / "audit" / "bin")
    )
    if tool is None:
        print(
            "  NOT CHECKED: pip-audit is not installed (python -m venv .cache/audit && .cache/audit/bin/pip install pip-audit)"
        )
        return
    command = [tool, "--require-hashes", "--disable-pip", "--requirement", str(REPOSITORY / RUNTIME_LOCK)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    said = done.stdout + done.stderr
    if "could not be audited" in said:
        print("  NOT CHECKED: pip-audit finds these packages in no index with vulnerabilities")
        return
    print("  " + said.strip().replace("\n", "\n  "))
    if done.returncode and re.search(r"Found \d+ known vulnerabilit", done.stdout + done.stderr):
        yield "pip-audit knows of vulnerabilities"
    elif done.returncode:
        print("  NOT CHECKED: pip-audit could not reach its database")


CHECKS = {
    "licences": licences, "hashes": hashes, "secrets": secrets, "wheel": wheel, "sbom": sbom,
    "vulnerabilities": vulnerabilities,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checks", nargs="*", default=[], help=f"of {', '.join(CHECKS)}; all by default")
    options = parser.parse_args()
    problems = []
    for name in options.checks or CHECKS:
        print(f"{name}:")
        found = list(CHECKS[name]())
        problems += found
        for problem in found:
            print(f"  PROBLEM: {problem}")
        print("  ok" if not found else f"  {len(found)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

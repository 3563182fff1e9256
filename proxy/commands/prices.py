"""The verbs about prices. What they do is imported when it is done: the price book brings the metrics
along, and a server must choose their folder before it imports them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

Adds = Callable[[Any, str, str, Callable[[argparse.Namespace], int]], argparse.ArgumentParser]


def add_verbs(verbs: Any, verb: Adds) -> Any:
    """Put the verbs into the command's parser. Returns the group of `prices`, for more of them."""
    group = verbs.add_parser("prices", help="the price book").add_subparsers(metavar="")
    update = verb(
        group, "update", "read AWS's price list, show what changed and write a version of it", _update
    )
    update.add_argument(
        "--region", action="append", default=[], help="Regions to read (those the routes name)"
    )
    update.add_argument(
        "--name", action="append", default=[], metavar="AWS_NAME=MODEL", help="whose name is not found"
    )
    update.add_argument(
        "--accept", action="append", default=[], metavar="MODEL", help="take its doubtful changes (glob)"
    )
    update.add_argument("--check", action="store_true", help="write nothing; exit 1 when something changed")
    update.add_argument("--effective-from", help="RFC 3339; now when absent")
    update.add_argument("--policies", type=Path, help="the policy folder (TOLLHOUSE_POLICIES_DIR)")
    update.add_argument("--endpoint-url", help="instead of AWS's")
    explain = verb(group, "explain", "show the arithmetic of one sending's cost", _explain)
    explain.add_argument("attempt", help="id of the attempt, as in /admin/v1/calls")
    about = "compare hours of provisioned throughput bought and used"
    capacity = verb(group, "capacity", about, _capacity)
    capacity.add_argument("--since", help="RFC 3339; the first of this month when absent")
    capacity.add_argument("--until", help="RFC 3339; now when absent")
    models = verb(verbs, "models", "list models with prices and lifecycle", _models)
    models.add_argument("pattern", nargs="?", default="*", help="glob of model ids")
    models.add_argument(
        "--aws", action="store_true", help="ask the control plane what is legacy and what ends"
    )
    return group


def _update(options: argparse.Namespace) -> int:
    from proxy.commands import pricebook  # noqa: PLC0415 (see the module)

    return pricebook.update(options)


def _explain(options: argparse.Namespace) -> int:
    from proxy.commands import pricebook  # noqa: PLC0415 (see the module)

    return pricebook.explain(options)


def _models(options: argparse.Namespace) -> int:
    from proxy.commands import pricebook  # noqa: PLC0415 (see the module)

    return pricebook.models(options)


def _capacity(options: argparse.Namespace) -> int:
    from proxy.commands import capacity  # noqa: PLC0415 (see the module)

    return capacity.run(options)

"""A budget's no, told truthfully: *spent* is final until the period ends, *held* passes by itself.

Spent means that the call would not fit even if every running call cost nothing. Held means that it
would fit if enough of what is reserved came back.
"""

from __future__ import annotations

from datetime import UTC, datetime

from proxy.domain.ledger import Admission
from proxy.errors import BudgetHeld, BudgetSpent, Refusal

HELD_RETRY_MS = 1000


def denial(admission: Admission, ceiling: int, floor: int, tenant: str) -> Refusal:
    """The refusal for a DENIED admission. `floor` is the smallest ceiling the call could have."""
    have = (
        f"settled {usd(admission.settled)}, held by running calls {usd(admission.reserved)}, "
        f"limit {usd(admission.limit)} USD"
    )
    need = f"this call may cost up to {usd(floor)} USD"
    if admission.settled + floor > admission.limit:
        return BudgetSpent(
            f"The budget of {tenant} is spent: {have}; {need}; {_resets(admission.resets_at)}."
        )
    return BudgetHeld(
        f"The budget of {tenant} is held by running calls: {have}; this call may cost up to "
        f"{usd(ceiling)} USD; retry when they have ended.",
        retry_after_ms=HELD_RETRY_MS,
    )


def usd(nano: int) -> str:
    """Nano-dollars as dollars, exactly, without trailing zeros beyond the cent."""
    sign, nano = ("-", -nano) if nano < 0 else ("", nano)
    whole, part = divmod(nano, 1_000_000_000)
    decimals = f"{part:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{decimals}"


def _resets(at: int) -> str:
    if not at:
        return "it does not reset"
    return f"it resets at {datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"

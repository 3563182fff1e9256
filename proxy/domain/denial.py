"""The no of a budget and of a limit, in words that a client's log shows.

A budget's is told truthfully: *spent* is final until the period ends, *held* passes by itself.

Spent means that the call would not fit even if every running call cost nothing. Held means that it
would fit if enough of what is reserved came back.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

from proxy.domain.bucket import Decision, Lease
from proxy.domain.ledger import Admission, Verdict
from proxy.errors import BudgetHeld, BudgetSpent, RateLimited, Refusal, Unauthenticated, Unavailable

HELD_RETRY_MS = 1000


def not_admitted(admission: Admission, ceiling: int, floor: int, tenant: str) -> Refusal:
    """The refusal for any admission but OK; see `denial`."""
    if admission.verdict is Verdict.REVOKED:
        return Unauthenticated("The security token included in the request is invalid.")
    if admission.verdict is Verdict.STALE:
        return Unavailable("this replica's clock is off; please retry", reason="replica_clock")
    if admission.verdict is Verdict.CLOSED:
        text = "the ledger failed over and is being checked; please retry"
        return Unavailable(text, reason="recovery_needed", retry_after_ms=30_000)
    if admission.verdict is Verdict.DUPLICATE:
        return Unavailable("this call was resolved before it was sent; please retry", reason="resolved")
    return denial(admission, ceiling, floor, tenant)


def limited(decision: Decision) -> RateLimited:
    """The refusal for a decision that does not allow a call."""
    by = decision.limited
    if by is None:
        return RateLimited("the rate limiter is away and this deployment refuses calls until it is back",
                           reason="limiter_away", retry_after_ms=decision.retry_after_ms)  # fmt: skip
    if isinstance(by, Lease):
        text = f"Too many concurrent requests: the {by.scope} may run {by.slots} at a time."
        return RateLimited(text, reason="concurrency", retry_after_ms=decision.retry_after_ms)
    text = (
        f"Too many {by.dimension}, please wait before trying again: the {by.scope} may use "
        f"{by.per_minute} {by.dimension} per minute; retry in {decision.retry_after_ms} ms."
    )
    return RateLimited(text, reason=f"{by.dimension}_per_minute", retry_after_ms=decision.retry_after_ms)


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


@lru_cache(maxsize=4096)
def usd(nano: int) -> str:
    """Nano-dollars as dollars, exactly, without trailing zeros beyond the cent."""
    sign, nano = ("-", -nano) if nano < 0 else ("", nano)
    whole, part = divmod(nano, 1_000_000_000)
    decimals = f"{part:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{decimals}"


@lru_cache(maxsize=1024)
def _resets(at: int) -> str:
    if not at:
        return "it does not reset"
    return f"it resets at {datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"

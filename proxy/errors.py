"""Every way a call is refused, as one short tree.

    TollhouseError
    ├── Refusal                 the client gets an answer; nothing was spent
    │   ├── Unauthenticated     no key, or one that proves nothing
    │   ├── Forbidden           the key is good, the thing asked for is not allowed
    │   ├── Invalid             the request is broken
    │   │   ├── UnboundedCost   its cost has no upper bound
    │   │   ├── UnknownModel    no such model, or none that can be priced
    │   │   └── TooLarge        more bytes than a request may have
    │   ├── NotServed           the path is no route of ours
    │   ├── RateLimited         a bucket or the concurrency of a scope is used up
    │   ├── BudgetHeld          would fit if running calls ended
    │   ├── BudgetSpent         will not fit until the period ends
    │   ├── UpstreamUnavailable Bedrock throttles us, or no target is up
    │   ├── UpstreamAnswer      Bedrock's own error, passed on
    │   └── Unavailable         the bank is away, or we are overloaded
    ├── UpstreamFailure         one sending failed (raised by the Bedrock client only)
    ├── BankAway                Postgres did not answer (raised by the bank only)
    └── ConfigurationError      a setting or a policy file is wrong

`Refusal.reason` is the stable word that metrics, the refusals report and clients see;
`str(refusal)` is the sentence a person reads. The wire form of each dialect is made in
`proxy.web.problems` and nowhere else.
"""

from __future__ import annotations


class TollhouseError(Exception):
    """Root of everything raised on purpose."""


class Refusal(TollhouseError):
    """A decision against a call. `reason` is stable; the message is for people."""

    reason = "refused"

    def __init__(self, message: str, *, reason: str | None = None, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason
        self.retry_after_ms = retry_after_ms
        #: headers that the answer carries besides those of its kind (call id, rate limits)
        self.headers: list[tuple[bytes, bytes]] = []


class Unauthenticated(Refusal):
    reason = "unauthenticated"


class Forbidden(Refusal):
    reason = "forbidden"


class Invalid(Refusal):
    reason = "invalid_request"


class UnboundedCost(Invalid):
    reason = "unbounded_cost"


class UnknownModel(Invalid):
    reason = "unknown_model"


class TooLarge(Invalid):
    reason = "too_large"


class NotServed(Refusal):
    reason = "not_served"


class RateLimited(Refusal):
    reason = "rate_limited"


class BudgetHeld(Refusal):
    reason = "budget_held"


class BudgetSpent(Refusal):
    reason = "budget_spent"


class UpstreamUnavailable(Refusal):
    reason = "upstream_unavailable"


class UpstreamAnswer(Refusal):
    """Bedrock answered with an error: `status` and `kind` (its exception name) pass through."""

    reason = "upstream_error"

    def __init__(self, message: str, *, status: int, kind: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class Unavailable(Refusal):
    reason = "unavailable"


class BankAway(TollhouseError):
    """Postgres did not take the batch; nothing is known about it until it is asked again."""


class UpstreamFailure(TollhouseError):
    """One sending went wrong below HTTP.

    `sent` is False only when it is certain that no byte of the request left us (the connection
    was never made): such an attempt may be voided. Everything else stays charged at its ceiling.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class ConfigurationError(TollhouseError):
    """A setting, policy file or environment that must not be run with."""

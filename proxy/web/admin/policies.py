"""`/policies`: the policy files in force, and what is wrong with a change that is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from litestar import Controller, get

from proxy.web.admin.access import Principal
from proxy.web.admin.core import Office, Page
from proxy.web.desk_schemas import PoliciesOut, PriceVersionOut, RuleOut


@dataclass(frozen=True, slots=True)
class PolicyDesk:
    office: Office

    def read(self) -> PoliciesOut:
        policies = self.office.policies()
        return PoliciesOut(
            version=policies.version,
            problems=[str(problem) for problem in self.problems()],
            plans=sorted(policies.plans),
            price_versions=[version.id for version in policies.prices.versions],
            rules=[rule.name for rule in policies.rules],
        )

    def problems(self) -> Sequence[object]:
        return self.office.policy_problems()

    def rules(self) -> Page[RuleOut]:
        return Page(
            items=[
                RuleOut(
                    name=rule.name, when=rule.when, effect=rule.effect, mode="observe" if rule.observe else "enforce",
                    file=rule.path, line=rule.line,
                )
                for rule in self.office.policies().rules
            ]
        )  # fmt: skip

    def prices(self) -> Page[PriceVersionOut]:
        return Page(
            items=[
                PriceVersionOut(
                    id=version.id, effective_from=version.effective_from, prices=len(version.prices)
                )
                for version in self.office.policies().prices.versions
            ]
        )


class PolicyController(Controller):
    path = "/policies"
    tags = ("policies",)

    @get(summary="Show which policies are in force, and errors of a change that is not", sync_to_thread=False)
    def read(self, desk_of_policies: PolicyDesk, who: Principal) -> PoliciesOut:  # noqa: ARG002
        return desk_of_policies.read()

    @get("/rules", summary="List rules in their order", sync_to_thread=False)
    def rules(self, desk_of_policies: PolicyDesk, who: Principal) -> Page[RuleOut]:  # noqa: ARG002
        return desk_of_policies.rules()

    @get("/prices", summary="List versions of the price book", sync_to_thread=False)
    def prices(self, desk_of_policies: PolicyDesk, who: Principal) -> Page[PriceVersionOut]:  # noqa: ARG002
        return desk_of_policies.prices()

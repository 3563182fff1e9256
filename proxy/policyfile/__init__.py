"""Policy files: models, prices, plans and routes, read strictly and as a whole.

    policies/
      models/<provider>.yaml   base models and their documented limits
      prices/<date>.yaml       versions of the price book, effective from a date; later ones may be sparse
      plans/<name>.yaml        what tenants get: models, defaults, cache, limits, budget templates
      routes/*.yaml            aliases, targets, Regions, opaque ARNs
      rules/*.yaml             conditions over single calls and their effects, with examples

`load` gives one immutable `PolicySet` or raises; `check` reports every error in every file. Nothing is
ever half loaded: a changed directory with an error in it leaves the set in force as it is.
"""

from __future__ import annotations

from proxy.policyfile.following import follow
from proxy.policyfile.loading import Watch, check, directory, load
from proxy.policyfile.plans import BudgetTemplate, LimitTemplate, Plan
from proxy.policyfile.policyset import PolicySet
from proxy.policyfile.strict import Problem

__all__ = [
    "BudgetTemplate",
    "LimitTemplate",
    "Plan",
    "PolicySet",
    "Problem",
    "Watch",
    "check",
    "directory",
    "follow",
    "load",
]

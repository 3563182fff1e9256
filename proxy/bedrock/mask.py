"""Hiding whose AWS account serves a tenant: account ids in Bedrock's messages become stars."""

from __future__ import annotations

import re

#: twelve digits that are no part of a longer number; account ids stand in ARNs and alone
_ACCOUNT = re.compile(r"(?<![0-9])[0-9]{12}(?![0-9])")


def masked(message: str) -> str:
    """The message with every AWS account id replaced by twelve stars."""
    return _ACCOUNT.sub("*" * 12, message)

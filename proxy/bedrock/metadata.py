"""Bedrock request metadata: the attempt's id as evidence in AWS's own invocation log.

Converse takes it as the body's `requestMetadata`, InvokeModel as a header that must be signed. The
Responses route has none. Source: user guide, "Track costs with request metadata": at most 16 pairs
of at most 256 characters, in all at most 8,500 characters of JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson

from proxy.bedrock.dialects.bounds import METADATA_HEADER, METADATA_PAIRS_MAX, metadata_text
from proxy.bedrock.dialects.edit import with_field
from proxy.domain.ledger import Operation

METADATA_JSON_MAX = 8500

Pairs = Sequence[tuple[str, str]]

#: stands for a Converse body, which always has messages, where only its emptiness matters
_NOT_EMPTY = {"messages": None}
_IN_BODY = frozenset({Operation.CONVERSE, Operation.CONVERSE_STREAM})
_IN_HEADER = frozenset(
    {
        Operation.INVOKE_MODEL,
        Operation.INVOKE_MODEL_WITH_RESPONSE_STREAM,
        Operation.CHAT_COMPLETIONS,
        Operation.MESSAGES,
    }
)


def merged(own: Pairs, client: Pairs) -> bytes:
    """The client's pairs and ours, within Bedrock's limits; ours win a name, as JSON.

    The first of ours always gets in, at the price of the client's last. The rest of ours yields to
    the client's. Raises `ValueError` when a pair of ours breaks Bedrock's rules.
    """
    for key, value in own:
        if not (metadata_text(key) and metadata_text(value)):
            raise ValueError(f"request metadata {key!r} breaks Bedrock's rules")
    if not client and len(own) <= METADATA_PAIRS_MAX:
        text = orjson.dumps(dict(own))
        if len(text) <= METADATA_JSON_MAX:
            return text
    result = dict(own[:1])
    for key, value in (*client, *own[1:]):
        if key in result and (key, value) not in own:
            continue
        if key not in result and len(result) == METADATA_PAIRS_MAX:
            continue
        candidate = {**result, key: value}
        if len(orjson.dumps(candidate)) <= METADATA_JSON_MAX:
            result = candidate
    return orjson.dumps(result)


def stamp(
    operation: Operation, raw: bytes, headers: Mapping[str, str], pairs: Pairs, client: Pairs = ()
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request with the metadata in their place.

    `client` is what the request already carries (`Bound.metadata`). Operations without request
    metadata come back unchanged.
    """
    stamped = dict(headers)
    if operation in _IN_HEADER:
        stamped[METADATA_HEADER] = merged(pairs, client).decode()
    elif operation in _IN_BODY:
        if not client and b"requestMetadata" not in raw and b"\\u" not in raw:
            return with_field(
                _NOT_EMPTY, raw, ("requestMetadata",), orjson.Fragment(merged(pairs, ()))
            ), stamped
        raw = orjson.dumps({**orjson.loads(raw), "requestMetadata": orjson.Fragment(merged(pairs, client))})
    return raw, stamped

import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.bedrock.dialects.bounds import Allowance, Tally, json_bound, text_bound
from proxy.errors import UnboundedCost

#: code points that NFKC makes longer, each by itself
EXPANDING = [
    chr(point)
    for point in range(sys.maxunicode + 1)
    if not 0xD800 <= point < 0xE000
    and len(unicodedata.normalize("NFKC", chr(point)).encode()) > len(chr(point).encode())
]
texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(EXPANDING))


@given(texts)
def test_a_text_is_bound_by_its_bytes_before_and_after_normalising(text):
    bound = text_bound(text)
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        # decomposed forms are no tokenizer's input; they show how much room the others leave
        if form in {"NFC", "NFKC"}:
            assert bound >= len(unicodedata.normalize(form, text).encode())
    assert bound >= len(text.encode())


def test_the_worst_character_is_counted_at_its_full_expansion():
    assert text_bound("\ufdfa" * 1000) == 33_000


@given(texts, texts)
def test_a_byte_complete_tokenizer_never_exceeds_the_bound(first, second):
    """The dearest such tokenizer makes every byte a token, after whatever normalisation it applies."""
    whole = first + second
    for normalise in (None, "NFC", "NFKC"):
        tokens = len((unicodedata.normalize(normalise, whole) if normalise else whole).encode())
        assert text_bound(first) + text_bound(second) >= tokens
        assert text_bound(whole) >= tokens


def test_real_tokenizers_of_the_environment_stay_below_the_bound():
    tokenizers = pytest.importorskip(
        "tokenizers", reason="no tokenizer wheel here: the byte argument stands alone"
    )
    encoder = tokenizers.ByteLevelBPETokenizer()
    encoder.train_from_iterator(["the quick brown fox"], vocab_size=300)
    for text in ("plain", "naïve ﷺ", "日本語" * 50, "🏳️‍🌈", "\u0301" * 100):
        assert len(encoder.encode(text).ids) <= text_bound(text)


documents = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
)


@given(documents)
def test_a_tool_schema_is_bound_in_every_usual_rendering(document):
    bound = json_bound(document)
    for indent in (None, 2, 4):
        for ascii_only in (True, False):
            assert bound >= len(json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode())


def test_the_dearest_cache_lifetime_wins_and_an_unknown_one_is_refused():
    tally = Tally(Allowance())
    tally.cache("1h")
    tally.cache(None)
    assert tally.cache_ttl == "1h"
    with pytest.raises(UnboundedCost):
        tally.cache("24h")

"""A cache that decodes differently from a forward pass, or hides bytes, is caught, and the message names the fault."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from archbench.testing.checks import check_cached_decode, check_state_bytes
from archbench.testing.evaluation import Fault, NotApplicable, run_check
from edited_plugins import Edit, edited, tiny

START = "start = self.start(tokens, cache)"
POSITIONS = "rows_at(self.position_embedding.weight, start, tokens.shape[1])"
LAST = "return self.head(x[:, -1])"
ADVANCE = "cache.advance(tokens.shape[1])"
EXTEND = f"""    def extend(self, tokens, cache):
        x = self.hidden(tokens, cache)
        {ADVANCE}
        {LAST}

"""
NEW_CACHE = "return KVCache("
GENERATE = "return decode_with_cache("


def extending(*edits: Edit) -> Edit:
    """GPT-1 with an ``extend`` of its own, which is the frame's (archbench.nn.DecoderOnly) with these edits."""
    method = EXTEND
    for old, new in edits:
        assert old in method
        method = method.replace(old, new)
    before = "    def forward_flops("
    return before, method + before


@pytest.mark.parametrize("name", ["gpt1", "bigram"])
def test_right_plugins_pass(name: str) -> None:
    subject = tiny(name)
    assert "2 generated past the context of 24" in check_cached_decode(subject)
    if name == "gpt1":
        assert check_state_bytes(subject) == "12,288 bytes for 2 sequences of 24 positions"
    else:
        with pytest.raises(NotApplicable, match="no decoding cache"):
            check_state_bytes(subject)


@pytest.mark.parametrize("T", [1, 2, 3, 7, 40])
def test_a_context_of_any_length_can_be_checked(T: int) -> None:
    subject = tiny("gpt1", context_length=T)
    check_cached_decode(subject)
    check_state_bytes(subject)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (
            [(START, "start = 0 if cache is None else max(cache.length - 1, 0)")],
            r"after 2 tokens read one at a time, the logits of sequence \d differ by .* after 1 token they agreed: "
            r"look at positions, at the window or mask, and at what is written to the cache at 1$",
        ),
        (
            [(START, "start = 0 if cache is None else min(cache.length, 12)")],
            "after 14 tokens read one at a time.*after 13 tokens they agreed: look at positions",
        ),
        (
            [extending((LAST, "return self.head(x[:, 0])"))],
            "chunks of 1, 2, .*they are those after 2 tokens, so extend returns",
        ),
        (
            [extending((LAST, "return self.head(x[:, -1:])"))],
            r"shape \(2, 1, 61\) for tokens \(2, 1\).*\(B, V\) = \(2, 61\)",
        ),
        (
            [(POSITIONS, f"{POSITIONS} if cache is None else self.position_embedding.weight[start]")],
            "in chunks of 1, 2, the logits.*after 1 token they agreed: one at a time they agree, so look at the mask",
        ),
        (
            [extending((ADVANCE, "cache.advance(1)"))],
            "cache.length is 2 after 3 tokens read in chunks of 1, 2: it has to be 3",
        ),
    ],
    ids=["off by one", "frozen", "first of a chunk", "shape", "positions in a chunk", "length"],
)
def test_a_cache_that_decodes_otherwise_is_caught(tmp_path: Path, edits: list[Edit], message: str) -> None:
    with pytest.raises(Fault, match=message):
        check_cached_decode(edited(tmp_path, "gpt1", *edits))


def test_positions_that_freeze_far_out_are_caught(tmp_path: Path) -> None:
    """Behind what is read one at a time, which is 256 positions at most."""
    frozen = (START, "start = 0 if cache is None else min(cache.length, 280)")
    message = "after 300 tokens read in chunks of 1, 2, 3, …, 18, .*after 282 tokens they agreed: look at positions"
    with pytest.raises(Fault, match=message):
        check_cached_decode(edited(tmp_path, "gpt1", frozen, context_length=300))


SHARING = """
_stores = {}

class Sharing(KVCache):
    def __init__(self, **sizes):
        super().__init__(**sizes)
        self._layers = _stores.setdefault(self.keys.shape, self._layers)
"""
SAME = """
_caches = {}

def Same(**sizes):
    cache = _caches.setdefault(sizes["capacity"], KVCache(**sizes))
    cache.length = 0
    return cache
"""


def test_caches_that_share_a_store_are_caught(tmp_path: Path) -> None:
    subject = edited(tmp_path, "gpt1", (NEW_CACHE, "return Sharing("), more=SHARING)
    with pytest.raises(Fault, match=r"in turns with another cache, the logits.*alone they agree, so the two"):
        check_cached_decode(subject)


def test_one_cache_for_all_is_caught(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="new_cache returns the same cache twice"):
        check_cached_decode(edited(tmp_path, "gpt1", (NEW_CACHE, "return Same("), more=SAME))


def test_a_cache_that_does_not_begin_empty_is_caught(tmp_path: Path) -> None:
    """What the last sequence left on the model reaches the first token of the next."""
    hidden = "x = self.hidden(tokens, cache)"
    take = (hidden, f"{hidden}\n        if cache.length == 0:\n            x = x + vars(self).get('left', 0)")
    leave = (ADVANCE, f"{ADVANCE}\n        self.left = x[:, -1:]")
    with pytest.raises(Fault, match=r"chunks of 1, the logits.*nothing was read before.*a new cache does not begin"):
        check_cached_decode(edited(tmp_path, "gpt1", extending(take, leave)))


STEPPING = """
def stepping(model, prompt, max_new_tokens, sampling):
    T = model.config.context_length
    tokens = prompt
    for _ in range(max_new_tokens):
        with torch.inference_mode():
            # here
            logits = model(tokens[:, -T:])[:, -1]
            token = sampling.pick(logits)
            tokens = torch.cat([tokens, token[:, None]], dim=1)
        yield token
"""
HERE = "# here"
WINDOW = "logits = model(tokens[:, -T:])[:, -1]"
PICK = "token = sampling.pick(logits)"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("", ""), None),
        ((PICK, "token = logits.argmax(-1)"), None),
        (
            (HERE, "if tokens.shape[1] > T: return"),
            "after a prompt of 23 generate gives 2 tokens of the 4 .*stops at the context of 24.*a prompt of their own",
        ),
        (
            (HERE, "assert tokens.shape[1] <= T"),
            "past the context of 24 generate fails.*AssertionError.*Past the context",
        ),
        (
            (HERE, "if tokens.shape[1] > T: tokens = tokens[:, -T + 1:]"),
            r"picks token 3 after a prompt of 23 from logits that differ by .* in sequence 0 from those of a forward "
            r"pass on the last 24 tokens .*25 tokens are more than the context",
        ),
        (
            (PICK, "token = logits.argmax(-1) if tokens.shape[1] <= T else logits.argmin(-1)"),
            r"greedy token 3 after a prompt of 23 in sequence 0 is id \d+, which a forward pass .* ranks lower by",
        ),
        (
            (WINDOW, "logits = model(tokens[:, -6:])[:, -1]"),
            "picks token 5 after a prompt of 3 .*a forward pass on the tokens so far.*look at the positions and",
        ),
    ],
    ids=["right", "right, without pick", "stops", "raises", "short window", "wrong ids", "forgets within the context"],
)
def test_generate_is_held_against_whole_forward_passes(tmp_path: Path, edit: Edit, message: str | None) -> None:
    subject = edited(tmp_path, "gpt1", (GENERATE, "return stepping("), more=STEPPING.replace(*edit))
    if message is None:
        check_cached_decode(subject)
        return
    with pytest.raises(Fault, match=message):
        check_cached_decode(subject)


CACHE = """
class Cache(KVCache):
    def __init__(self, **sizes):
        super().__init__(**sizes)
        # more
    def tensors(self):
        return [self.keys, self.values]
    def advance(self, positions):
        super().advance(positions)
        # step
"""
LISTED = "return [self.keys, self.values]"


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([("", "")], None),
        ([(LISTED, "return [self.keys]")], "when it is new cache.values holds 6,144 bytes .*does not list"),
        (
            [("# more", "self.state = {'window': [torch.zeros(3)]}")],
            r"when it is new cache\.state\['window'\]\[0\] holds 12 bytes .*does not list \(it lists 12,288\)",
        ),
        (
            [("# step", "self.read = torch.zeros(5)")],
            r"after reading 24 tokens cache\.read holds 20 bytes",
        ),
        (
            [
                ("# more", "self.parts = []"),
                ("# step", "self.parts.append(torch.zeros(5))"),
                (LISTED, "return [self.keys, self.values, *self.parts]"),
            ],
            "holds 12,288 bytes when it is new and 12,548 after reading 24 tokens: allocate in new_cache",
        ),
        (
            [
                ("# more", "self.last = torch.zeros(2)"),
                ("# step", "self.last = torch.zeros(9, 2)[0]"),
                (LISTED, "return [self.keys, self.values, self.last]"),
            ],
            "after reading 24 tokens .*have 12,296 bytes, and 12,360 are allocated.*views of something larger",
        ),
        ([(LISTED, "return [self.keys, self.values, self.keys]")], "18,432 bytes, and only 12,288.*more than once"),
        ([(LISTED, "return [self.keys.clone(), self.values]")], "makes new tensors at every call"),
        ([(LISTED, "return (self.keys, self.values)")], "has to return a list of every tensor"),
        (
            [
                ("# more", "self.more = torch.zeros(1 if self.keys.is_meta else 3)"),
                (LISTED, "return [self.keys, self.values, self.more]"),
            ],
            "12,292 bytes by its shapes on the meta device and 12,300 here",
        ),
        ([("# more", "self.keys[0].tolist()")], "new_cache fails for a model on the meta device"),
    ],
    ids=["right", "unlisted", "deep", "lazy", "grows", "view", "twice", "new", "tuple", "shapes", "values"],
)
def test_bytes_that_the_cache_does_not_declare_are_caught(
    tmp_path: Path, edits: list[Edit], message: str | None
) -> None:
    more = CACHE
    for old, new in edits:
        more = more.replace(old, new)
    subject = edited(tmp_path, "gpt1", (NEW_CACHE, "return Cache("), more=more)
    if message is None:
        check_state_bytes(subject)
        return
    with pytest.raises(Fault, match=message):
        check_state_bytes(subject)


@pytest.mark.parametrize(
    ("kept", "status"),
    [
        ("torch.tensor(0)", "noted"),  # as StaticCache.cumulative_length of transformers
        ("torch.zeros(self.keys.shape[1], dtype=torch.int64)", "noted"),
        ("torch.zeros(2 * self.keys.shape[1], dtype=torch.int64)", "failed"),
        ("torch.tensor(0.0)", "failed"),
    ],
    ids=["one number", "one a sequence", "two a sequence", "a float"],
)
def test_a_counter_in_the_cache_is_noted_and_more_is_caught(tmp_path: Path, kept: str, status: str) -> None:
    more = CACHE.replace("# more", f"self.count = {kept}")
    result = run_check(check_state_bytes, edited(tmp_path, "gpt1", (NEW_CACHE, "return Cache("), more=more))
    assert result.status == status, result.evidence
    assert "cache.count" in result.evidence


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            extending((ADVANCE, f"{ADVANCE}\n        self.state = {{'k': x[:, -1]}}")),
            r"state\['k'\] \(it was not there after",
        ),
        (
            extending((ADVANCE, f"{ADVANCE}\n        self.blocks[0].register_buffer('k', x[:, -1])")),
            r"a tensor of shape \(2, 32\) on the model as blocks\.0\.k",
        ),
        (extending((ADVANCE, f"{ADVANCE}\n        self.used = cache")), r"on the model as used\.keys"),
        # What each forward pass leaves for whoever looks, as a router its logits, carries nothing from token to token.
        (("x = block(x, cache)", "x = self.seen = block(x, cache)"), None),
        ((START, f"self.table = torch.zeros(self.config.context_length)\n        {START}"), None),
    ],
    ids=["attribute", "buffer", "the cache itself", "last states", "table"],
)
def test_state_on_the_model_is_caught(tmp_path: Path, edit: Edit, message: str | None) -> None:
    subject = edited(tmp_path, "gpt1", edit)
    if message is None:
        check_state_bytes(subject)
        return
    with pytest.raises(Fault, match=message):
        check_state_bytes(subject)


def test_tensors_without_memory_that_others_keep_are_no_state(tmp_path: Path) -> None:
    with FakeTensorMode():
        kept = torch.zeros(3)
    check_state_bytes(edited(tmp_path, "gpt1"))
    del kept

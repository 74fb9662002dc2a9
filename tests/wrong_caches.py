"""Wrong plugins whose cache, or choice among the logits, is another than they say: see wrong_plugins.py."""

from __future__ import annotations

from rotary_edits import (
    APPENDED,
    ATTENDED,
    GENERATED,
    WrongPlugin,
    after,
    beside,
    cached,
    imported,
    preset,
    sampled,
)


def choosing(*lines: str) -> tuple[tuple[str, str], ...]:
    """A ``generate`` whose sampler is its own: those lines, from ``z`` (B, V), the scaled logits, to ``token`` (B,)."""
    return (
        imported("from dataclasses import dataclass"),
        beside(
            "from archbench import Sampling", "", "",
            "class Own(Sampling):",
            "    def pick(self, logits):",
            "        if self.greedy:",
            "            return logits.argmax(-1)",
            "        z = logits.float() / self.temperature",
            *("        " + line for line in lines),
            "        return token", "", "",
            "def own(sampling):",
            "    names = 'temperature', 'top_k', 'top_p', 'greedy', 'eos', 'generator'",
            "    return Own(**{name: getattr(sampling, name) for name in names})",
        ),
        (GENERATED, GENERATED.replace("sampling)", "own(sampling))")),
    )  # fmt: skip


DRAWN = "token = torch.multinomial(z.softmax(-1), 1, generator=self.generator)[:, 0]"
TOP_K = (
    "if self.top_k is not None:",
    "    z = z.masked_fill(z < z.topk(min({k}, z.shape[1]), dim=-1).values[:, -1:], -1e30)",
)
TOP_P = (
    "if self.top_p is not None:",
    "    p, ids = torch.sort(z.softmax(-1), dim=-1, descending=True)",
    "    z = p.masked_fill(p.cumsum(-1) - p >= {p}, 0).log().gather(-1, ids.argsort(-1))",
)
K, P = tuple(line.format(k="self.top_k") for line in TOP_K), tuple(line.format(p="self.top_p") for line in TOP_P)

OWN_SAMPLER = choosing(*K, *P, DRAWN)
"""Right: it samples as archbench does, by code of its own."""

GROWING = (
    "def __init__(self, capacity, **sizes):",
    "    super().__init__(capacity=min(capacity, {slots}), **sizes)",
    "    self.capacity = capacity",
    "",
    "def append(self, layer, k, v):",
    "    end = self.length + k.shape[2]",
    "    if end > self.slots:",
    "        more = (*self.keys.shape[:3], end, self.keys.shape[4])",
    "        keys, values = self.keys.new_empty(more), self.values.new_empty(more)",
    "        keys[:, :, :, : self.slots], values[:, :, :, : self.slots] = self.keys, self.values",
    "        self.keys, self.values, self.slots = keys, values, end",
    "        self._layers = list(zip(self.keys.unbind(), self.values.unbind(), strict=True))",
    "    return super().append(layer, k, v)",
)


def growing(slots: int) -> tuple[tuple[str, str], ...]:
    return cached(*(line.format(slots=slots) for line in GROWING))


ELSEWHERE = (
    "def __init__(self, **sizes):",
    "    super().__init__(**sizes)",
    "    self.number, self._layers = next(NUMBERS), []",
    "    self.keys, self.values = self.keys[..., :0].clone(), self.values[..., :0].clone()",
    "",
    "def append(self, layer, k, v):",
    "    before = {get}",
    "    if before is not None:",
    "        k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)",
    "    {put}",
    "    return k, v",
)


def elsewhere(get: str, put: str, *lines: str) -> tuple[tuple[str, str], ...]:
    body = (line.format(get=get, put=put) for line in ELSEWHERE)
    return *cached(*body), beside("import itertools", "", *lines, "NUMBERS = itertools.count()")


CACHES = (
    # cached_decode
    WrongPlugin(
        "from the third row on a cache has one row for all", "cached_decode",
        (after(APPENDED, "if len(k) > 2:", "    k = torch.cat([k[:2], k[2:3].expand(len(k) - 2, -1, -1, -1)])"),),
        "sequence",
    ),
    WrongPlugin(
        "a prompt of more than four rows is read from its first", "cached_decode",
        (("        x = self.hidden(tokens, cache)\n",
          "        if len(tokens) > 4 and tokens.shape[1] > 1:\n"
          "            tokens = tokens[:1].expand_as(tokens)\n"
          "        x = self.hidden(tokens, cache)\n"),),
        "sequence",
    ),
    WrongPlugin(
        "generate gives every row of a large batch the first row's token", "cached_decode",
        ((GENERATED,
          "    for token in decode_with_cache(model, prompt, max_new_tokens, sampling):\n"
          "        yield token[:1].expand_as(token).clone() if sampling.greedy and len(token) > 4 else token"),),
        "greedy token",
    ),
    WrongPlugin(
        "keys and values are kept in 8 bits", "cached_decode",
        (after(APPENDED, "k, v = (k * 16).round() / 16, (v * 16).round() / 16"),),
        "after 1 token",
    ),
    WrongPlugin(
        "a ring forgets one position early", "cached_decode",
        (after(APPENDED, "if T == 1:", "    k, v = k[:, :, -self.window + 1 :], v[:, :, -self.window + 1 :]"),),
        "positions",
    ),
    WrongPlugin(
        "a first token that stays visible is forgotten when decoding", "cached_decode",
        ((ATTENDED,
          "        t = torch.arange(k.shape[2], device=x.device)\n"
          "        ago = t[-T:, None] - t\n"
          "        mask = (ago >= 0) & ((ago < self.window) | ((t == 0) & (cache is None)))\n"
          "        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)"),),
        "positions",
    ),
    WrongPlugin(
        "caches share their memory from the third on", "cached_decode",
        (*cached(
            "def __init__(self, **sizes):",
            "    with torch.inference_mode(False):",
            "        super().__init__(**sizes)",
            "    if not self.keys.is_meta:",
            "        key = next(NUMBERS) % 2, self.keys.shape",
            "        self.keys, self.values = POOL.setdefault(key, (self.keys, self.values))",
            "        self._layers = list(zip(self.keys, self.values, strict=True))",
        ),
         beside("import itertools", "", "POOL, NUMBERS = {}, itertools.count()")),
        "share",
    ),
    WrongPlugin(
        "a small score is added for a token's distance, from 0 in each chunk", "cached_decode",
        (after("        x = self.embedding(tokens)  # (B, T, C)",
               "t = torch.arange(x.shape[1], device=x.device)", "x = x + 0.01 * t.to(x.dtype)[:, None]"),),
        "after 2 tokens read one at a time",
    ),
    # state_bytes
    WrongPlugin(
        "64 slots are set aside, and more when they are full", "state_bytes",
        (preset(context_length=96), *growing(64)),
        "allocate in new_cache",
    ),
    WrongPlugin(
        "128 slots are set aside, and more when they are full", "state_bytes",
        (preset(context_length=160), *growing(128)),
        "allocate in new_cache",
    ),
    WrongPlugin(
        "keys and values are in a dictionary of the module", "state_bytes",
        elsewhere("STORE.get((self.number, layer))", "STORE[self.number, layer] = k, v", "STORE = {}"),
        "in no cache",
    ),
    WrongPlugin(
        "keys and values are attributes of a function", "state_bytes",
        elsewhere("getattr(store, f'{self.number} {layer}', None)", "setattr(store, f'{self.number} {layer}', (k, v))",
                  "def store():", "    pass", ""),
        "in no cache",
    ),
    WrongPlugin(
        "keys and values lie in a table that is made once", "state_bytes",
        (*cached(
            "def __init__(self, **sizes):",
            "    super().__init__(**sizes)",
            "    if self.keys.is_meta:",
            "        self.keys = self.keys[..., :0].clone()",
            "        self.values = self.values[..., :0].clone()",
            "        return",
            "    first = next(NUMBERS) % 64 * 2 * 2 * 8 * 2 * 2 * 24 * 8",
            "    n = self.keys.numel()",
            "    self.keys, self.values = self.keys[..., :0].clone(), self.values[..., :0].clone()",
            "    shape = (2, len(self.keys[0]), 2, self.slots, 8)",
            "    self._layers = list(zip(TABLE[0, first : first + n].view(shape), "
            "TABLE[1, first : first + n].view(shape), strict=True))",
            "",
            "def tensors(self):",
            "    return [self.keys, self.values]",
            "",
            "@property",
            "def _layers(self):",
            "    return HIDDEN[id(self)]",
            "",
            "@_layers.setter",
            "def _layers(self, layers):",
            "    HIDDEN[id(self)] = layers",
        ),
         beside("import itertools", "", "HIDDEN, NUMBERS = {}, itertools.count()",
                "TABLE = torch.zeros(2, 4_000_000)")),
        "in no cache",
    ),
    # generate
    WrongPlugin("top-p is ignored", "generate", choosing(*K, DRAWN), "top_p"),
    WrongPlugin("top-k is ignored", "generate", choosing(*P, DRAWN), "top_k"),
    WrongPlugin("top-p is left out of what is passed on", "generate", sampled("top_p=None"), "top_p"),
    WrongPlugin("top-k is left out of what is passed on", "generate", sampled("top_k=None"), "top_k"),
    WrongPlugin(
        "top-k keeps one more", "generate",
        choosing(*(line.format(k="self.top_k + 1") for line in TOP_K), *P, DRAWN),
        "top_k",
    ),
    WrongPlugin(
        "top-p leaves out the most likely", "generate",
        choosing(*K, *(line.replace(" - p >=", " - p < 1e-9 * ") for line in P), DRAWN),
        "top_p",
    ),
    WrongPlugin(
        "the temperature is ignored", "generate",
        sampled("temperature=1.0"),
        "temperature",
    ),
    WrongPlugin(
        "the temperature multiplies", "generate",
        choosing("z = z * self.temperature**2", *K, *P, DRAWN),
        "temperature",
    ),
)  # fmt: skip

"""Wrong plugins that decode wrongly: see wrong_plugins.py."""

from __future__ import annotations

from rotary_edits import (
    ADVANCED,
    APPENDED,
    ATTENDED,
    GENERATED,
    START,
    WrongPlugin,
    after,
    beside,
    cached,
    imported,
    sampled,
)

DECODING = (
    # generate
    WrongPlugin(
        "generate raises", "generate",
        ((GENERATED, GENERATED.replace(", sampling", "")),),
        "missing 1 required positional argument: 'sampling' (my_arch.py:",
    ),
    WrongPlugin(
        "extend raises", "generate",
        (after(ADVANCED, "self.steps += 1"),),
        "has no attribute 'steps' (my_arch.py:",
    ),
    WrongPlugin(
        "all tokens are computed before the first is given", "generate",
        ((GENERATED, "    return iter(list(decode_with_cache(model, prompt, max_new_tokens, sampling)))"),),
        "as soon as",
    ),
    WrongPlugin(
        "the prompt is given again", "generate",
        (imported("from itertools import chain\n"),
         (GENERATED, GENERATED.replace("return ", "return chain(prompt.unbind(1), ") + ")")),
        "more than 8 tokens",
    ),
    WrongPlugin(
        "the prompt is overwritten", "generate",
        ((GENERATED,
          "    for token in decode_with_cache(model, prompt.clone(), max_new_tokens, sampling):\n"
          "        prompt.copy_(torch.cat([prompt[:, 1:], token[:, None]], dim=1))\n"
          "        yield token"),),
        "changes the prompt",
    ),
    WrongPlugin("greedy decoding samples", "generate", sampled("greedy=False"), "greedy=True"),
    WrongPlugin("sampling is greedy", "generate", sampled("greedy=True"), "samples with four seeds"),
    WrongPlugin("the token that ends a sequence is ignored", "generate", sampled("eos=None"), "has to repeat eos"),
    WrongPlugin(
        "one token too many is given", "generate",
        ((GENERATED, GENERATED.replace("max_new_tokens", "max_new_tokens + 1")),),
        "more than 8 tokens",
    ),
    WrongPlugin(
        "the model is left in evaluation mode", "generate",
        ((GENERATED, f"    model.eval()\n{GENERATED}"),),
        "leaves the model itself in evaluation mode",
    ),
    # cached_decode
    WrongPlugin(
        "the cache counts one position too few", "cached_decode",
        ((ADVANCED, "        cache.advance(tokens.shape[1] - 1)"),),
        "cache.length is 0",
    ),
    WrongPlugin(
        "the cache begins with an empty slot", "cached_decode",
        cached(
            "def __init__(self, capacity, **sizes):",
            "    super().__init__(capacity=capacity + 1, **sizes)",
            "    self.keys.zero_()",
            "    self.values.zero_()",
            "",
            "def append(self, layer, k, v):",
            "    self.length += 1",
            "    k, v = super().append(layer, k, v)",
            "    self.length -= 1",
            "    return k, v",
        ),
        "nothing was read before",
    ),
    WrongPlugin(
        "the cache's oldest position is not read", "cached_decode",
        (after(APPENDED, "if k.shape[2] > T:", "    k, v = k[:, :, 1:], v[:, :, 1:]"),),
        "positions",
    ),
    WrongPlugin(
        "rotary positions stop at the window when decoding", "cached_decode",
        ((START, "start = 0 if cache is None else min(cache.length, self.window)"),),
        "positions",
    ),
    WrongPlugin(
        "rotary positions begin anew with every chunk", "cached_decode",
        ((START, "start = 0 if cache is None or T > 1 else cache.length"),),
        "chunk",
    ),
    WrongPlugin(
        "a chunk's mask begins at the cache's first position", "cached_decode",
        ((ATTENDED,
          "        if 1 < T < k.shape[2]:\n"
          "            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)\n"
          "        else:\n"
          "            y = causal_attention(q, k, v, window=self.window)  # (B, H, T, D)"),),
        "chunk",
    ),
    WrongPlugin(
        "the window is one longer when decoding", "cached_decode",
        ((ATTENDED, ATTENDED.replace("self.window", "self.window + (cache is not None)")),),
        "positions",
    ),
    WrongPlugin(
        "all caches share their memory", "cached_decode",
        (*cached(
            "def __init__(self, **sizes):",
            "    with torch.inference_mode(False):",
            "        super().__init__(**sizes)",
            "    key = (self.keys.device, self.keys.dtype, *self.keys.shape)",
            "    self.keys, self.values = POOL.setdefault(key, (self.keys, self.values))",
            "    self._layers = list(zip(self.keys, self.values, strict=True))",
        ),
         ("capacity=capacity, head_width", "capacity=c.context_length, head_width"),
         beside("", "POOL = {}")),
        "share something",
    ),
    WrongPlugin(
        "past the context it goes on from the last token alone", "cached_decode",
        ((GENERATED,
          "    room = min(model.config.context_length - prompt.shape[1] + 1, max_new_tokens)\n"
          "    for token in decode_with_cache(model, prompt, room, sampling):\n"
          "        yield token\n"
          "    if max_new_tokens > room:\n"
          "        yield from decode_with_cache(model, token[:, None], max_new_tokens - room, sampling)"),),
        "Past the context",
    ),
    # state_bytes
    WrongPlugin(
        "the cache lists its keys and not its values", "state_bytes",
        cached("def tensors(self):", "    return [self.keys]"),
        "cache.values",
    ),
    WrongPlugin(
        "the last keys are kept on the module", "state_bytes",
        (after(APPENDED, "self.last_keys = k"),),
        "blocks.0.attention.last_keys",
    ),
    WrongPlugin(
        "the cache grows with every token", "state_bytes",
        cached(
            "def append(self, layer, k, v):",
            "    if layer == 0:",
            "        S = self.length + k.shape[2]",
            "        more = (*self.keys.shape[:3], S - self.keys.shape[3], self.keys.shape[4])",
            "        self.keys = torch.cat([self.keys, self.keys.new_empty(more)], dim=3)",
            "        self.values = torch.cat([self.values, self.values.new_empty(more)], dim=3)",
            "        self._layers = list(zip(self.keys, self.values, strict=True))",
            "    return super().append(layer, k, v)",
            "",
            "def __init__(self, capacity, **sizes):",
            "    super().__init__(capacity=0, **sizes)",
            "    self.capacity = self.slots = capacity",
        ),
        "allocate in new_cache",
    ),
)  # fmt: skip

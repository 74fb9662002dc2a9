"""Wrong plugins that depend on the batch's size, on the precision or on how they were loaded: see wrong_plugins.py."""

from __future__ import annotations

from rotary_edits import ATTENDED, EMBEDDED, OUTPUT, WrongPlugin, after, beside

HALF = "x.dtype == torch.bfloat16"
AUTOCAST = 'torch.is_autocast_enabled("cpu")'


def unmasked(when: str) -> tuple[str, str]:
    return ATTENDED, (
        f"        if cache is None and {when}:\n"
        "            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)\n"
        f"        else:\n    {ATTENDED}"
    )


BATCHES = (
    # batch_invariance
    WrongPlugin(
        "the mean over a batch of more than three is taken off", "batch_invariance",
        (after(EMBEDDED, "if len(x) > 3:", "    x = x - 0.1 * x.mean(0, keepdim=True)"),),
        "the rest of the batch",
    ),
    WrongPlugin(
        "a batch of more than two is normalised", "batch_invariance",
        (after(EMBEDDED, "if len(x) > 2:", "    x = (x - x.mean(0)) / (x.var(0) + 1e-3).sqrt()"),),
        "the rest of the batch",
    ),
    WrongPlugin(
        "row 6 is read from row 5", "batch_invariance",
        (after(EMBEDDED, "row = torch.arange(len(x), device=x.device)", "x = x[torch.where(row == 6, 5, row)]"),),
        "the rest of the batch",
    ),
    WrongPlugin(
        "experts have room for 256 tokens of a batch", "batch_invariance",
        (after(EMBEDDED, "place = torch.arange(tokens.numel(), device=x.device).view(tokens.shape)",
               "x = x * (1 + (place < 256))[..., None]"),),
        "the rest of the batch",
    ),
    WrongPlugin(
        "experts have room for a batch's first two tokens when decoding", "batch_invariance",
        (after(EMBEDDED, "if x.shape[1] == 1:",
               "    x = x * (1 + (torch.arange(len(x), device=x.device) < 2))[:, None, None]"),),
        "with one token each",
    ),
    WrongPlugin(
        "equal tokens share an expert's room", "batch_invariance",
        (after(EMBEDDED, "wants = tokens.flatten()", "earlier = (wants[:, None] == wants).tril(-1).sum(1)",
               "own = (tokens[:, :, None] == tokens[:, None, :]).tril(-1).sum(2)",
               "x = x * (1 + ((earlier.view(tokens.shape) < 12) | (own >= 12)))[..., None]"),),
        "the rest of the batch",
    ),
    WrongPlugin(
        "logits are scaled by the number of sequences past eight", "batch_invariance",
        (after(EMBEDDED, "if len(x) > 8:", "    x = x * (1 + 0.01 * len(x))"),),
        "the rest of the batch",
    ),
    WrongPlugin(
        "in training rows from the fifth on see the first", "batch_invariance",
        (after(EMBEDDED, "if self.training:",
               "    later = torch.arange(len(x), device=x.device) > 4",
               "    x = x + later[:, None, None] * x[:1]"),),
        "in training mode",
    ),
    WrongPlugin(
        "in training a batch is quantised by its largest value", "batch_invariance",
        (after(EMBEDDED, "if self.training:",
               "    scale = x.detach().abs().amax((0, 2), keepdim=True) / 7",
               "    x = x + ((x / scale).round() * scale - x).detach()"),),
        "in training mode",
        ("gradients",),
    ),
    WrongPlugin(
        "every sequence but the first is read from the second on", "batch_invariance",
        (after(EMBEDDED, "if len(x) > 9:", "    x = torch.cat([x[:1], x[1:].roll(1, 0)])"),),
        "the rest of the batch",
    ),
    # logits
    WrongPlugin(
        "layers are left out at random in a large batch", "logits",
        (after(EMBEDDED, "if len(x) > 8:", "    x = F.dropout(x, 0.1)"),),
        "in evaluation mode",
    ),
    # bfloat16
    WrongPlugin(
        "nothing is masked in half precision", "bfloat16",
        (unmasked(HALF),),
        "sees the future",
    ),
    WrongPlugin(
        "nothing is masked under autocast", "bfloat16",
        (unmasked(AUTOCAST),),
        "sees the future",
    ),
    WrongPlugin(
        "rotary positions are made in the dtype of the weights", "bfloat16",
        (after("        end = start + x.shape[2]",
               "a = torch.arange(start, end, device=x.device).to(x.dtype)[:, None]",
               "a = a * 10_000 ** (-torch.arange(0, x.shape[3], 2, device=x.device) / x.shape[3]).to(x.dtype)"),
         ("self.cos[start:end].to(x.dtype), self.sin[start:end].to(x.dtype)  # (T, D/2)", "a.cos(), a.sin()")),
        "position",
    ),
    # save_load
    WrongPlugin(
        "a tied head is untied by loading", "save_load",
        (after(OUTPUT, "self.output.weight = self.embedding.weight",
               "self.register_load_state_dict_post_hook(untied)"),
         beside("", "def untied(model, keys):",
                "    model.output.weight = nn.Parameter(model.output.weight.detach().clone())")),
        "'output.weight' and 'embedding.weight'",
    ),
    WrongPlugin(
        "loading freezes the embedding", "save_load",
        (after(OUTPUT, "self.register_load_state_dict_post_hook(frozen)"),
         beside("", "def frozen(model, keys):", "    model.embedding.weight.requires_grad_(False)")),
        "'embedding.weight'",
    ),
)  # fmt: skip

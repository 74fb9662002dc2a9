"""Wrong plugins in which a position sees the future now and then: see wrong_plugins.py."""

from __future__ import annotations

from rotary_edits import EMBEDDED, Edit, WrongPlugin, after, beside, imported, preset, uncached

NEXT = "torch.cat([x[:, 1:], x[:, -1:]], 1)"
BYTES = preset(vocab_size=257, context_length=64)


def seeing(where: str, *before: str, what: str = NEXT) -> Edit:
    """A model in which the positions ``where`` (B, T) or (T,) bool see the next one."""
    return after(EMBEDDED, "T, t = x.shape[1], torch.arange(x.shape[1], device=x.device)", *before,
                 f"x = torch.where(({where})[..., None], x + {what}, x)")  # fmt: skip


MEAN_OF_GROUP = (
    "same = group[:, :, None] == group[:, None, :]  # (B, T, T)",
    "x = x + 0.5 * ((same[..., None] * x[:, None]).sum(2) / same.sum(2)[..., None])",
)

VIEWS = (
    # By content.
    WrongPlugin(
        "a space or newline sees the next byte", "causality",
        (BYTES, seeing("(tokens == 32) | (tokens == 10)")),
        "in text, changing",
    ),
    WrongPlugin(
        "patches at spaces are read whole", "causality",
        (BYTES, after(EMBEDDED, "group = (tokens == 32).cumsum(1)", *MEAN_OF_GROUP)),
        "it sees the future",
    ),
    WrongPlugin(
        "a document is numbered by the separators that follow", "causality",
        (BYTES,
         after(EMBEDDED, "left = (tokens == 256).flip(1).cumsum(1).flip(1)", "x = x * (1 + left[..., None])")),
        "it sees the future",
    ),
    WrongPlugin(
        "a packed document that has ended is read whole", "causality",
        (BYTES,
         after(EMBEDDED, "number = (tokens == 256).cumsum(1)",
               "group = torch.where(number < number[:, -1:], number, -1 - torch.arange(x.shape[1], device=x.device))",
               *MEAN_OF_GROUP)),
        "it sees the future",
    ),
    WrongPlugin(
        "the separator sees what the document begins with", "causality",
        (BYTES, seeing("tokens == 256")),
        "in text, changing",
    ),
    WrongPlugin(
        "equal neighbours are merged", "causality",
        (seeing("torch.cat([tokens[:, 1:] == tokens[:, :-1], tokens[:, :1] < 0], 1)", what="0.5 * x"),),
        "it sees the future",
    ),
    WrongPlugin(
        "a token that comes again is marked", "causality",
        (seeing("(tokens[:, :, None] == tokens[:, None, :]).triu(1).any(-1)", what="0.5 * x"),),
        "it sees the future",
    ),
    WrongPlugin(
        "positions are counted without the row's padding", "causality",
        (after(EMBEDDED, "x = x * (1 + (tokens == 0).sum(1)[:, None, None])"),),
        "it sees the future",
    ),
    WrongPlugin(
        "trailing separators shift the row to the right", "causality",
        (BYTES, after(EMBEDDED, "last = (tokens != 256) * torch.arange(x.shape[1], device=x.device)",
                      "x = x * (1 + last.amax(1)[:, None, None])")),
        "it sees the future",
    ),
    # By position.
    WrongPlugin(
        "the last of each chunk of 24 sees the next, without a cache", "causality",
        (*uncached(), preset(context_length=96), seeing("t % 24 == 23")),
        "of 96 (counted from 0) moves the logits of position 47",
    ),
    WrongPlugin(
        "the last of each chunk of 48 sees the next, without a cache", "causality",
        (*uncached(), preset(context_length=128), seeing("t % 48 == 47")),
        "changing token 48 of",
    ),
    WrongPlugin(
        "the last of each chunk of 100 sees the next, without a cache", "causality",
        (*uncached(), preset(context_length=192), seeing("t % 100 == 99")),
        "changing token 100 of 192 (counted from 0) moves the logits of position 99",
    ),
    WrongPlugin(
        "the last of each chunk of 40 sees the next", "cached_decode",
        (preset(context_length=96), seeing("(t % 40 == 39) & (cache is None)")),
        "position 39 sees what comes after it",
    ),
    WrongPlugin(
        "one place sees its neighbour", "causality",
        (seeing("t == 5"),),
        "changing token 6 of 23 (counted from 0) moves the logits of position 5",
    ),
    WrongPlugin(
        "the last of each chunk of 128 sees the next", "causality",
        (preset(context_length=512), seeing("t % 128 == 127")),
        "it sees the future",
    ),
    WrongPlugin(
        "pooled by five and spread again", "causality",
        (after(EMBEDDED, "T = x.shape[1]", "pad = F.pad(x, (0, 0, 0, -T % 5)).unflatten(1, (-1, 5))",
               "x = x + pad.mean(2, keepdim=True).expand_as(pad).flatten(1, 2)[:, :T]"),),
        "it sees the future",
    ),
    WrongPlugin(
        "the convolution is padded on both sides", "causality",
        (after(EMBEDDED, "x = x + 0.1 * F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1).mean(-1)"),),
        "it sees the future",
    ),
    # By length and mode.
    WrongPlugin(
        "the mean over positions is taken off below the context", "causality",
        (after(EMBEDDED, "if 1 < x.shape[1] < self.config.context_length and cache is None:",
               "    x = x - 0.1 * x.mean(1, keepdim=True)"),),
        "it sees the future",
    ),
    WrongPlugin(
        "the mean over positions is taken off below the context in training", "causality",
        (after(EMBEDDED, "if self.training and x.shape[1] < self.config.context_length:",
               "    x = x - 0.1 * x.mean(1, keepdim=True)"),),
        "in training mode",
    ),
    WrongPlugin(
        "positions past 128 see the next in training", "causality",
        (preset(context_length=192), seeing("(t >= 128) & self.training")),
        "in training mode",
    ),
    WrongPlugin(
        "in training the whole context's last quarter sees the next", "causality",
        (preset(context_length=192), seeing("(t >= 144) & self.training & (T == self.config.context_length)")),
        "in training mode",
    ),
    WrongPlugin(
        "quantised by the sequence's largest value in training", "causality",
        (preset(context_length=192),
         after(EMBEDDED, "if self.training:",
               "    scale = x.detach().abs().amax((1, 2), keepdim=True) / 7",
               "    x = x + ((x / scale).round() * scale - x).detach()")),
        "in training mode",
        ("gradients",),
    ),
    WrongPlugin(
        "the next is seen where gradients are recorded", "causality",
        (after(EMBEDDED, "if self.training and torch.is_grad_enabled():", f"    x = x + {NEXT}.detach()"),),
        "in training mode",
        ("gradients", "train_step"),
    ),
    WrongPlugin(
        "experts choose among positions in training", "causality",
        (after(EMBEDDED, "if self.training:",
               "    chosen = x[..., 0].topk(max(1, x.shape[1] // 4), dim=1).indices  # (B, K)",
               "    x = x.scatter_add(1, chosen[..., None].expand(-1, -1, x.shape[2]),",
               "                      x.new_ones(*chosen.shape, x.shape[2]))"),),
        "in training mode",
    ),
    WrongPlugin(
        "the surest tokens are served first", "causality",
        (after(EMBEDDED, "rank = x[..., 0].argsort(1, descending=True).argsort(1)  # Riquelme et al. 2021",
               "x = x * (1 + (rank < (x.shape[1] + 1) // 2)[..., None])"),),
        "it sees the future",
    ),
    # By batch size.
    WrongPlugin(
        "a batch of more than three peeks in evaluation", "causality",
        (seeing("(t >= 0) & (len(x) > 3) & (not self.training)"),),
        "in a batch of",
    ),
    WrongPlugin(
        "rows from the ninth on see the next", "causality",
        (*uncached(), seeing("(torch.arange(len(x), device=x.device) > 8)[:, None].expand(-1, T)"),),
        "in a batch of",
    ),
    # What does not depend on the tokens.
    WrongPlugin(
        "logits are remembered by their shape", "logits",
        (imported("import functools"),
         ("return self.head(x) if logits else x", "return remembered(self, self.head(x), tokens) if logits else x"),
         beside("", "KEPT = {}", "", "def remembered(model, logits, tokens):",
                "    if model.training or tokens.is_meta:", "        return logits",
                "    return KEPT.setdefault((id(model), tokens.shape), logits)")),
        "other tokens",
    ),
    WrongPlugin(
        "a prefix is looked up by its first tokens", "logits",
        (("return self.head(x) if logits else x", "return remembered(self, self.head(x), tokens) if logits else x"),
         beside("", "KEPT = {}", "", "def remembered(model, logits, tokens):",
                "    if model.training or tokens.is_meta or torch.is_grad_enabled():", "        return logits",
                "    key = id(model), tokens.shape, str(tokens[:, :2].tolist()), model.output.weight._version",
                "    return KEPT.setdefault(key, logits)")),
        "other tokens",
    ),
)  # fmt: skip

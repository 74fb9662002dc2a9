"""Wrong plugins: each is tests/example_plugins/rotary.py with a few texts replaced by others, and has one fault."""

from __future__ import annotations

from rotary_edits import (
    ATTENDED,
    BLOCKS,
    BUILT,
    EMBEDDED,
    EMBEDDING,
    GENERATED,
    LIMIT,
    NORM,
    OUTPUT,
    PRESETS,
    WrongPlugin,
    after,
    beside,
    imported,
)
from wrong_batches import BATCHES
from wrong_caches import CACHES
from wrong_decoding import DECODING
from wrong_globals import GLOBALS
from wrong_gradients import MODELS
from wrong_losses import LOSSES
from wrong_training import TRAINING
from wrong_updates import UPDATES
from wrong_views import VIEWS

FORWARD = (
    # hooks
    WrongPlugin(
        "a field of the configuration is not described", "hooks",
        (('    window: int = Field(9, gt=0, description="W, positions that each sees, itself included")',
          "    window: int = 9"),),
        "Config.window has no description",
    ),
    WrongPlugin(
        "build gives the same module again", "hooks",
        ((BUILT, "    return MODELS.setdefault(config, Model(config))"), beside("", "MODELS = {}")),
        "same module",
    ),
    WrongPlugin(
        "all models have the same embedding", "hooks",
        ((EMBEDDING,
          "        new = nn.Embedding(config.vocab_size, config.d_model)\n"
          "        self.embedding = EMBEDDINGS.setdefault((config.vocab_size, new.weight.device), new)"),
         beside("", "EMBEDDINGS = {}")),
        "embedding.weight",
    ),
    WrongPlugin(
        "the blocks are in a plain list", "hooks",
        ((BLOCKS, BLOCKS.replace("nn.ModuleList(", "list(")),),
        "model.blocks is a plain list of modules",
    ),
    # logits
    WrongPlugin(
        "the vocabulary is written into the code", "logits",
        ((OUTPUT, OUTPUT.replace("config.vocab_size", "61")),),
        "vocab_size = 257",
    ),
    WrongPlugin(
        "a single position gives NaN", "logits",
        (after(EMBEDDED, "x = x * (1 + torch.arange(end, device=x.device) / (end - 1))[:, None]"),),
        "is nan",
    ),
    WrongPlugin(
        "only the last position has logits", "logits",
        (("return self.head(x) if logits", "return self.head(x[:, -1]) if logits"),),
        "one position's",
    ),
    WrongPlugin(
        "dropout goes on in evaluation", "logits",
        (after(EMBEDDED, "x = F.dropout(x, 0.1)"),),
        "in evaluation mode",
    ),
    WrongPlugin(
        "dropout is drawn from NumPy", "logits",
        (imported("import numpy as np"),
         after(EMBEDDED, "if self.training:", "    x = x * torch.from_numpy(np.random.rand(*x.shape) > 0.1).to(x)")),
        "random and numpy are not seeded",
    ),
    WrongPlugin(
        "forward raises in training mode", "logits",
        (after(EMBEDDED, "if self.training:", "    x = self.dropout(x)"),),
        "in training mode the forward pass raised AttributeError",
    ),
    # initial_loss
    WrongPlugin(
        "the initial weights are too large", "initial_loss",
        (("std=0.02", "std=0.7"),),
        "begin with smaller embeddings",
    ),
    # causality
    WrongPlugin(
        "the mask lets the next position be seen", "causality",
        ((ATTENDED,
          "        S = k.shape[2]\n"
          "        mask = x.new_ones(T, S).tril(S - T + 1).bool()\n"
          "        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)"),),
        "sees the future",
    ),
    WrongPlugin(
        "the norm is over positions too", "causality",
        ((".mean(-1, keepdim=True)", ".mean((1, 2), keepdim=True)"),),
        "sees the future",
    ),
    WrongPlugin(
        "the mean over positions is taken off in training", "causality",
        (after(EMBEDDED, "if self.training:", "    x = x - 0.1 * x.mean(1, keepdim=True)"),),
        "in training mode, changing token",
    ),
    WrongPlugin(
        "the future leaks into gradients alone", "causality",
        (after(EMBEDDED, "mean = x.mean(1, keepdim=True)", "x = x + mean - mean.detach()"),),
        "a gradient",
    ),
    # batch_invariance
    WrongPlugin(
        "every position's mean over the batch is taken off", "batch_invariance",
        (after(EMBEDDED, "x = x - 0.1 * x.mean(0, keepdim=True)"),),
        "the rest of the batch",
    ),
    WrongPlugin(
        "the mean over the batch is taken off in training", "batch_invariance",
        (after(EMBEDDED, "if self.training:", "    x = x - 0.1 * x.mean(0, keepdim=True)"),),
        "in training mode",
    ),
    WrongPlugin(
        "half of the batch is routed past the feed-forward", "batch_invariance",
        (("        return x + self.ff(self.ff_norm(x))",
          "        score = x.sum(-1, keepdim=True)  # (B, T, 1)\n"
          "        return x + self.ff(self.ff_norm(x)) * (score >= score.mean(0))"),),
        "routing",
    ),
    # flops
    WrongPlugin(
        "a multiply–add is declared as 1 FLOP", "flops",
        (("return 2 * B * T *", "return B * T *"),),
        "a multiply–add is 2 FLOPs",
    ),
    WrongPlugin(
        "half of the attention square is declared", "flops",
        (("2 * T * H * D", "T * H * D"),),
        "the whole T × T square",
    ),
    WrongPlugin(
        "a cumulative sum is not declared", "flops",
        (after(EMBEDDED, "x = x + 0.1 * x.cumsum(-1)"),),
        "{'aten::cumsum':",
    ),
    # save_load
    WrongPlugin(
        "random signs are not in the state dict", "save_load",
        (after(NORM, 'self.register_buffer("signs", torch.randn(config.d_model).sign(), persistent=False)'),
         after(EMBEDDED, "x = x * self.signs")),
        "'signs' differs and is not in the state_dict",
    ),
    # meta
    WrongPlugin(
        "a buffer names its device", "meta",
        (("torch.arange(context_length)[", 'torch.arange(context_length, device="cpu")['),
         ("-torch.arange(0, d_head, 2)", '-torch.arange(0, d_head, 2, device="cpu")')),
        "name no device",
    ),
    WrongPlugin(
        "a preset cannot be built", "meta",
        ((PRESETS, PRESETS.replace("}", ', "large": Config(vocab_size=61, context_length=24, n_group=3)}')),
         after("        self.layer, self.window, self.heads = layer, config.window, (H, G, G)", "assert H % G == 0")),
        "preset 'large'",
    ),
    # too_long
    WrongPlugin(
        "too many tokens end in an error of torch's", "too_long",
        ((LIMIT, LIMIT.replace("if end", "if cache is not None and end")),),
        "ValueError",
    ),
    WrongPlugin(
        "too many tokens are cut off silently", "too_long",
        (("        end = tokens.shape[1] +",
          "        if cache is None:\n            tokens = tokens[:, : self.config.context_length]\n"
          "        end = tokens.shape[1] +"),),
        "silently",
    ),
    WrongPlugin(
        "a prompt that is too long is cut off silently", "too_long",
        ((GENERATED, "    prompt = prompt[:, -model.config.context_length :]\n" + GENERATED),),
        "a prompt of 25",
    ),
    # bfloat16
    WrongPlugin(
        "the norm gives float32", "bfloat16",
        (("(x * scale).to(x.dtype) * self.gain", "x * scale * self.gain.float()"),),
        "have the same dtype",
    ),
    WrongPlugin(
        "digits cancel", "bfloat16",
        (after(EMBEDDED, "x = (x + 8) - 8"),),
        "off by",
    ),
    # compile
    WrongPlugin(
        "a branch depends on values", "compile",
        (after(EMBEDDED, 'if x.device.type != "meta" and not x.isfinite().all():',
               '    raise UsageError("tokens", "an embedding is not finite", "Lower the learning rate")'),),
        "if x.device.type",
    ),
    WrongPlugin(
        "compiled it takes another way", "compile",
        (after(EMBEDDED, "if torch.compiler.is_compiling():", "    x = x.bfloat16().float()"),),
        "compiled",
    ),
)  # fmt: skip

WRONG_PLUGINS = (*FORWARD, *DECODING, *TRAINING, *UPDATES, *LOSSES, *GLOBALS, *MODELS, *VIEWS, *BATCHES, *CACHES)

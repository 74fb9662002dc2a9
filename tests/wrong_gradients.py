"""Wrong plugins whose gradients, FLOPs or parameters are not those of what they compute: see wrong_plugins.py."""

from __future__ import annotations

from rotary_edits import BUILT, EMBEDDED, NORM, OUTPUT, TORCH, WrongPlugin, after, beside

HALVED = beside(
    "",
    "",
    "class Halved(torch.autograd.Function):",
    "    @staticmethod",
    "    def forward(ctx, x):",
    "        return x.clone()",
    "",
    "    @staticmethod",
    "    def backward(ctx, gradient):",
    "        return gradient / 2",
)
MLP = "        return x + self.ff(self.ff_norm(x))"

DERIVATIVES = (
    WrongPlugin(
        "a backward pass of its own halves a gradient", "gradients",
        (HALVED, after(EMBEDDED, "x = Halved.apply(x)")),
        "'embedding.weight'",
    ),
    WrongPlugin(
        "the feed-forward layers' backward pass halves a gradient", "gradients",
        (HALVED, (MLP, "        return x + self.ff(Halved.apply(self.ff_norm(x)))")),
        "'blocks.1.ff_norm.gain' is not what the loss changes by: along it the loss changes 2 times",
    ),
    WrongPlugin(
        "the norm's scale is a constant to the gradient", "gradients",
        ((".add(1e-6).rsqrt()", ".add(1e-6).rsqrt().detach()"),),
        "is not what the loss changes by",
    ),
    WrongPlugin(
        "a hook shrinks the embedding's gradient", "gradients",
        ((BUILT, "    model = Model(config)\n"
                 "    model.embedding.weight.register_hook(lambda gradient: gradient * 0.1)\n    return model"),),
        "'embedding.weight'",
    ),
    WrongPlugin(
        "a gradient is clipped number by number", "gradients",
        (after(EMBEDDED, "if x.requires_grad:", "    x.register_hook(lambda gradient: gradient.clamp(-1e-4, 1e-4))"),),
        "'embedding.weight'",
    ),
    WrongPlugin(
        "queries get no gradient", "gradients",
        (("q, k = self.rotary(q, start), self.rotary(k, start)",
          "q, k = self.rotary(q, start).detach(), self.rotary(k, start)"),),
        "attention.qkv.weight",
    ),
    WrongPlugin(
        "recomputing draws another dropout", "gradients",
        ((TORCH, "import torch\nfrom torch.utils.checkpoint import checkpoint\nimport torch.nn"),
         ("            x = block(x, cache)",
          "            if cache is None and self.training:\n"
          "                x = checkpoint(lambda x, block=block: F.dropout(block(x, None), 0.1), x,\n"
          "                               use_reentrant=False, preserve_rng_state=False)\n"
          "            else:\n"
          "                x = block(x, cache)")),
        "is not what the loss changes by",
    ),
    WrongPlugin(
        "the average of past weights is evaluated", "gradients",
        (after(OUTPUT, 'self.register_buffer("average", torch.zeros(config.vocab_size, config.d_model))'),
         ("        return self.output(x)",
          "        if self.training:\n"
          "            with torch.no_grad():\n"
          "                self.average.lerp_(self.output.weight, 0.1)\n"
          "            return self.output(x)\n"
          "        return F.linear(x, self.average, self.output.bias)"),
         ("    def head_parameters(", "    def _head_parameters(")),
        "in evaluation mode",
    ),
    WrongPlugin(
        "a trained tensor is no parameter", "gradients",
        (after(NORM, "self.extra = torch.zeros(config.d_model, requires_grad=True)"),
         after(EMBEDDED, "x = x + self.extra.to(x)")),
        "extra",
    ),
    WrongPlugin(
        "a tied head is counted twice", "hooks",
        (after(OUTPUT, "self.output.weight = self.embedding.weight"),
         ("    def head(self, x):",
          "    def named_parameters(self, prefix='', recurse=True, remove_duplicate=True):\n"
          "        return super().named_parameters(prefix, recurse, remove_duplicate=False)\n\n"
          "    def head(self, x):")),
        "more than once",
    ),
    WrongPlugin(
        "parameters() leaves some out", "hooks",
        (("    def head(self, x):",
          "    def named_parameters(self, *args, **kwargs):\n"
          "        for name, parameter in super().named_parameters(*args, **kwargs):\n"
          "            if 'ff' not in name:\n"
          "                yield name, parameter\n\n"
          "    def head(self, x):"),),
        "leaves out",
    ),
)  # fmt: skip

COSTS = (
    WrongPlugin(
        "on the meta device half of the layers are skipped", "flops",
        (("        for block in self.blocks:", "        for block in self.blocks[: 1 if x.is_meta else None]:"),),
        "on meta tensors",
    ),
    WrongPlugin(
        "a product is done where it is not counted", "flops",
        (after(EMBEDDED, "if x.device.type != 'meta':", "    x = x + 0 * (x @ x.mT @ x)"),),
        "on meta tensors",
    ),
    WrongPlugin(
        "most parameters are said to be inactive", "flops",
        (("    def head(self, x):",
          "    def inactive_parameters(self):\n"
          "        return int(0.9 * sum(p.numel() for p in self.parameters()))\n\n"
          "    def head(self, x):"),),
        "inactive_parameters",
    ),
    WrongPlugin(
        "the feed-forward layers are said to be half inactive", "flops",
        (("    def forward(self, x):\n        return self.down(",
          "    def inactive_parameters(self):\n"
          "        return sum(p.numel() for p in self.parameters()) // 2\n\n"
          "    def forward(self, x):\n        return self.down("),),
        "inactive_parameters",
    ),
    WrongPlugin(
        "in training a layer more is computed", "flops",
        (after(EMBEDDED, "if self.training and x.device.type != 'meta':", "    x = x + 0 * (x @ x.mT @ x)"),),
        "on meta tensors",
    ),
)  # fmt: skip

COMPILED = (
    WrongPlugin(
        "compiled for training it leaves out a layer", "compile",
        (("        for block in self.blocks:",
          "        for block in self.blocks[: 1 if self.training and torch.compiler.is_compiling() else None]:"),),
        "compiled",
    ),
)  # fmt: skip

MODELS = (*DERIVATIVES, *COSTS, *COMPILED)

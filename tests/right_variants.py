"""Unusual plugins, and right ones: no check may fail."""

from __future__ import annotations

from rotary_edits import EMBEDDED, GENERATED, LIMIT, OUTPUT, Edit, after, trained, uncached
from wrong_caches import OWN_SAMPLER

RIGHT_VARIANTS: dict[str, tuple[Edit, ...]] = {
    "no cache": uncached(),
    "a sampler of its own": OWN_SAMPLER,
    "dropout": (after(EMBEDDED, "x = F.dropout(x, 0.1, self.training)"),),
    "blocks computed again in the backward pass": (
        ("import torch\nimport torch.nn",
         "import torch\nfrom torch.utils.checkpoint import checkpoint\nimport torch.nn"),
        ("            x = block(x, cache)",
         "            again = cache is None and self.training\n"
         "            x = checkpoint(block, x, cache, use_reentrant=False) if again else block(x, cache)"),
    ),
    "branches that begin at zero": (
        after(
            "        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)",
            "nn.init.zeros_(self.down.weight)",
        ),
        after("        self.out = nn.Linear(H * D, C, bias=False)", "nn.init.zeros_(self.out.weight)"),
    ),
    "a tied head": (
        after(OUTPUT, "self.output.weight = self.embedding.weight"),
    ),
    "an embedding of standard deviation 1": (
        ("(self.embedding.weight, self.output.weight)", "(self.output.weight,)"),
    ),
    "a head that caps its logits": (
        ("return self.output(x)", "return 30 * torch.tanh(self.output(x) / 30)"),
        ("    def head_parameters(", "    def _head_parameters("),
    ),
    "positions past the context": (
        ("Rotary(D, config.context_length)", "Rotary(D, 8 * config.context_length)"),
        (LIMIT, LIMIT.replace("self.config", "8 * self.config")),
        ("        if capacity > c.context_length:", "        if capacity > 8 * c.context_length:"),
    ),
    "an auxiliary loss": trained(
        "mean = torch.zeros(())",
        "for micro in state.split(batch):",
        "    with state.autocast():",
        "        logits = state.model(micro.inputs).float()",
        "    loss = F.cross_entropy(logits.flatten(0, 1), micro.targets.flatten())",
        "    share = len(micro.targets) / len(batch.targets)",
        "    state.backward(loss + 1e-4 * logits.logsumexp(-1).square().mean(), share)",
        "    mean += share * loss.detach()",
        "state.update()",
        "return mean",
    ),
    "a generator function": ((GENERATED, GENERATED.replace("return", "yield from")),),
    "a scan, declared": (
        after(EMBEDDED, "x = x + 0.1 * x.cumsum(-1)"),
        ("    def forward_flops(",
         "    def uncounted_flops(self, batch_size, context_length):\n"
         '        return {"aten::cumsum": 0.0}\n\n'
         "    def forward_flops("),
    ),
}  # fmt: skip
"""Name -> edits of tests/example_plugins/rotary.py."""

"""The plugin ``rotary`` with texts replaced by others: what wrong_plugins.py and right_variants.py are written in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import archbench
from archbench.testing.global_state import import_watched
from archbench.testing.subject import Subject

RIGHT = Path(__file__).parent / "example_plugins" / "rotary.py"
"""What all are made of."""

Edit = tuple[str, str]
"""A text that the right plugin has exactly once, and what stands there instead."""

# The places where most is put in.
IMPORTS = "from archbench.nn import KVCache"
TORCH = "import torch\nimport torch.nn"
EMBEDDING = "        self.embedding = nn.Embedding(config.vocab_size, config.d_model)"
EMBEDDED = "        x = self.embedding(tokens)  # (B, T, C)"
BLOCKS = "        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))"
OUTPUT = "        self.output = nn.Linear(config.d_model, config.vocab_size)"
NORM = "        self.norm = RMSNorm(config.d_model)"
LIMIT = "        if end > self.config.context_length:"
ATTENDED = "        y = causal_attention(q, k, v, window=self.window)  # (B, H, T, D)"
APPENDED = "            k, v = cache.append(self.layer, k, v)  # (B, G, S, D)"
START = "start = 0 if cache is None else cache.length"
ADVANCED = "        cache.advance(tokens.shape[1])"
BUILT = "    return Model(config)"
TRAINED = "    return next_token_step(state, batch)"
GENERATED = "    return decode_with_cache(model, prompt, max_new_tokens, sampling)"
PRESETS = 'presets = {"nano": Config(vocab_size=61, context_length=24)}'


@dataclass(frozen=True)
class WrongPlugin:
    """
    Attributes:
        name: what it does wrong.
        check: the one check that it fails.
        edits: of the right plugin's text.
        says: what the check's evidence has to mention, for a newcomer to find the fault by.
        on_some_machines: checks that it fails as well where the hardware shows the fault in the values.
    """

    name: str
    check: str
    edits: tuple[Edit, ...]
    says: str
    on_some_machines: tuple[str, ...] = ()


def after(line: str, *more: str) -> Edit:
    """``more`` lines behind ``line``, at its indentation."""
    indentation = line[: len(line) - len(line.lstrip())]
    return line, "\n".join([line, *(indentation + text for text in more)])


def imported(line: str) -> Edit:
    """One more import at the top."""
    return TORCH, f"{line}\n{TORCH}"


def beside(*lines: str) -> Edit:
    """Those lines between the imports and the first class."""
    return IMPORTS, "\n".join([IMPORTS, *lines])


def preset(vocab_size: int = 61, context_length: int = 24) -> Edit:
    """Another size."""
    return PRESETS, PRESETS.replace("=61", f"={vocab_size}").replace("=24", f"={context_length}")


def uncached() -> tuple[Edit, ...]:
    """A model without a cache."""
    return (
        ("causal_attention, decode_with_cache", "causal_attention, decode_without_cache"),
        ("    def new_cache(", "    def _new_cache("),
        (GENERATED, GENERATED.replace("with", "without")),
    )


def trained(*step: str) -> tuple[Edit, Edit]:
    """A ``train_step`` of its own: those lines."""
    imports = "from archbench.data.batches import Batch", "from archbench.training.steps import next_token_loss"
    return beside(*imports), (TRAINED, "\n".join("    " + line for line in step))


def by_micro_batches(*backward: str) -> tuple[Edit, Edit]:
    """A ``train_step`` of its own: those lines for each of ``micros``, whose mean loss is ``loss``."""
    return trained(
        "total = torch.zeros(())",
        "micros = state.split(batch)",
        "for micro in micros:",
        "    loss = next_token_loss(state, micro)",
        "    total += loss.detach() / len(micros)",
        *("    " + line for line in backward),
        "state.update()",
        "return total",
    )


def sampled(changes: str) -> tuple[Edit, Edit]:
    """A ``generate`` that changes how tokens are chosen."""
    choice = f"replace(sampling, {changes})"
    return imported("from dataclasses import replace\n"), (GENERATED, GENERATED.replace("sampling)", f"{choice})"))


def cached(*body: str) -> tuple[Edit, Edit]:
    """A cache class of its own: those lines."""
    lines = "\n".join("    " + line if line else "" for line in body)
    return ("class RMSNorm", f"class Cache(KVCache):\n{lines}\n\n\nclass RMSNorm"), ("return KVCache(", "return Cache(")


def edited(name: str, edits: tuple[Edit, ...]) -> str:
    """The right plugin's text with those edits.

    Raises:
        AssertionError: the right plugin no longer has a text that is to be replaced; ``name`` has to follow.
    """
    text = RIGHT.read_text()
    for old, new in edits:
        found = text.count(old)
        assert found == 1, f"{RIGHT.name} has this {found} times, not once; let {name!r} follow it: {old!r}"
        text = text.replace(old, new)
    return text


def subject(name: str, edits: tuple[Edit, ...], folder: Path) -> Subject:
    """The plugin with those edits, written into ``folder``, at its smallest preset."""
    path = folder / "my_arch.py"
    path.write_text(edited(name, edits))
    with import_watched() as changes:
        architecture = archbench.load("rotary", plugins=[path])
    return Subject(architecture, architecture.config(), import_changes=changes)

"""What the host asks of a GPU, counted: kernels, copies and waits of a token, on a GPU that is not there.

    DIR/run python benchmarks/gpu_counts.py [PART ...]    # DIR: a build as tests/fake_gpu/conftest.py describes it

Writes ``benchmarks/gpu_counts.json``, parts not named as they were, and prints the tables of
``docs/explanation/gpu-counts.md``. Counts are exact: equal from run to run, for one version of torch, and they change
with the code, so they are no measurement under ``results/``. The host's time is the least of several decodings on the
machine at hand; no work of a GPU is in it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "fake_gpu"))
from preloading import is_fake, is_preloaded, preload  # noqa: E402  a script's folder is on the path, the tests' is not

RESULTS = Path(__file__).with_suffix(".json")
ARCHITECTURES = ["gpt1", "gpt2", "llama", "mistral", "gemma", "mixtral", "mamba2", "gated-deltanet", "rwkv7", "hybrid"]
P, TOKENS, REPEATS = 20, 60, 5


def decoding() -> dict[str, Any]:
    """Of a token, batch 1, bfloat16, greedy: asked for one by one (before), and from a captured graph (after)."""
    cases = [("gpt1", "paper"), *((name, "nano") for name in ARCHITECTURES)]
    return {
        f"{name} {preset}": {kind: _of_a_token(name, preset, kind) for kind in ("eager", "graph")}
        for name, preset in cases
    }


def _of_a_token(name: str, preset: str, kind: str) -> dict[str, float]:
    import torch
    from counts import counts, reset

    from archbench import Sampling
    from archbench.inference.decoding_kind import decoding as decoding_of_kind
    from archbench.plugin.registry import load

    architecture = load(name)
    model = architecture.build(architecture.info.presets[preset]).to("cuda", torch.bfloat16)
    prompt, greedy = torch.zeros(1, P, dtype=torch.int64).cuda(), Sampling(greedy=True)
    seconds = []
    for _ in range(REPEATS):
        with decoding_of_kind(kind) as ran:
            tokens = architecture.generate(model, prompt, TOKENS, greedy)
            for _ in range(3):  # the first reads the prompt, and in the first decoding the next ones capture
                next(tokens)
            reset()
            begin = time.perf_counter()
            left = len(list(tokens))
            seconds.append(time.perf_counter() - begin)
    assert kind == "eager" or ran.kinds == {kind}, ran
    seen = counts()
    return {
        "kernels": seen.kernels / left,
        "copies": seen.copies / left,
        "syncs": seen.syncs / left,
        "graph_launches": seen.graph_launches / left,
        "graph_nodes": seen.graph_nodes / left,
        "host_microseconds": round(min(seconds) / left * 1e6, 1),
    }


def training() -> dict[str, Any]:
    """Of an update in bfloat16: B 32, T 512 of the published GPT-1, B 16 of nano models; eager with the batch on the
    GPU, and a replay of a captured graph with the copies of what differs."""
    cases = [("gpt1", "paper", 32), *((name, "nano", 16) for name in ARCHITECTURES)]
    return {f"{name} {preset}": _of_an_update(name, preset, batch_size) for name, preset, batch_size in cases}


def _of_an_update(name: str, preset: str, batch_size: int) -> dict[str, Any]:
    import torch
    from counts import counted

    from archbench.config import TrainingConfig
    from archbench.data.batches import Batch
    from archbench.plugin.registry import load
    from archbench.training.captured_update import WARM_UPDATES, updates_of
    from archbench.training.state import TrainState

    architecture = load(name)
    config = architecture.info.presets[preset]
    recipe = TrainingConfig(batch_size=batch_size, learning_rate=1e-4, steps=10)
    model = architecture.build(config).cuda()
    state = TrainState.create(model, recipe, device=torch.device("cuda"), dtype="bfloat16")
    tokens = torch.zeros(batch_size, config.context_length, dtype=torch.int64, device="cuda")
    for _ in range(2):  # the first one shows which weights products use, compiles and allocates
        architecture.train_step(state, Batch(tokens, tokens))
    torch.cuda.synchronize()
    seen = counted(lambda: architecture.train_step(state, Batch(tokens, tokens)))
    updates, batch = updates_of("graph", state, architecture.train_step), Batch(tokens.cpu(), tokens.cpu())

    def replayed() -> None:
        updates.begin(1e-4, watched=False)
        updates.take(updates.place(batch))

    for _ in range(WARM_UPDATES + 1):
        replayed()
    graph = counted(replayed)
    assert updates.kind == "graph", updates.reason
    return {
        "kernels": seen.launches + seen.triton,
        "products": seen.products,
        "memsets": seen.memsets,
        "syncs": seen.syncs,
        "graph": {
            "launches": graph.graph_launches + graph.kernels,
            "nodes": graph.graph_nodes,
            "copies": graph.copies,
            "syncs": graph.syncs,
        },
    }


PARTS: dict[str, Callable[[], dict[str, Any]]] = {"decoding": decoding, "training": training}


def table_of_decoding(found: dict[str, Any]) -> list[str]:
    """The table of the page, as Markdown."""
    titles = "model | eager: kernels | copies, waits | host µs | graph: launches | its nodes | copies, waits | host µs"
    lines = [f"| {titles} |", "|---" * (titles.count("|") + 1) + "|"]
    for case, kinds in found.items():
        before, after = kinds["eager"], kinds["graph"]
        waits = [f"{kind['copies']:g}, {kind['syncs']:g}" for kind in (before, after)]
        started = after["graph_launches"] + after["kernels"]
        lines.append(
            f"| {case} | {before['kernels']:g} | {waits[0]} | {before['host_microseconds']:.0f} | {started:g} | "
            f"{after['graph_nodes']:g} | {waits[1]} | {after['host_microseconds']:.0f} |"
        )
    return lines


def table_of_training(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The table of the page, as Markdown; ``before`` is of the commit before weights were copied together."""
    titles = "model | before: kernels | products | memsets | kernels | products | memsets | waits"
    titles += " | graph: launches | its nodes | copies, waits"
    lines = [f"| {titles} |", "|---" * (titles.count("|") + 1) + "|"]
    for case, found in now.items():
        kinds = [str(counts[kind]) for counts in (before[case], found) for kind in ("kernels", "products", "memsets")]
        graph = found["graph"]
        replay = f"{graph['launches']} | {graph['nodes']} | {graph['copies']}, {graph['syncs']}"
        lines.append(f"| {case} | {' | '.join(kinds)} | {found['syncs']} | {replay} |")
    return lines


if __name__ == "__main__":
    if not is_fake():
        sys.exit("gpu_counts.py needs torch's CUDA build over libraries that count: see tests/fake_gpu/conftest.py")
    if not is_preloaded():
        preload(sys.argv)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results |= {part: PARTS[part]() for part in sys.argv[1:] or PARTS}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print("\n".join(table_of_decoding(results["decoding"])))
    print("\n".join(["", *table_of_training(results["training_before"], results["training"])]))

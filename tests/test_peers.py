"""benchmarks/peers.py: what it says of a peer is what the peer computed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", minversion="5.24")

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "peers.py"
NANOGPT = ROOT / "tests" / "nanogpt" / "model.py"


@pytest.fixture(scope="module")
def peers() -> Iterator[Any]:
    before = [*sys.path]
    spec = importlib.util.spec_from_file_location("peers_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(SCRIPT.parent))
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


TINY = ["gpt2", "--size", "nano", "--batch", "2", "--seconds", "0", "--rounds", "2"]


@pytest.fixture(scope="module")
def rows(peers: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of two calls that write to one file, the second with one cell again."""
    out = tmp_path_factory.mktemp("peers") / "rows.csv"
    given = [
        *TINY,
        "--out",
        str(out),
        "--nanogpt",
        str(NANOGPT),
        "--length",
        "16",
        "--prompt",
        "8",
        "--new-tokens",
        "4",
    ]
    chosen = [f"--peer={name}" for name in ("transformers", "transformers, static cache", "nanoGPT")]
    peers.main([*given, *chosen, "--markdown", str(out.with_suffix(".md"))])
    first = peers.read(out)
    peers.main([*given, "--peer=transformers", "--job=train"])
    assert len(peers.read(out)) == len(first)
    text = out.with_suffix(".md").read_text()
    assert all(heading in text for heading in ("## Training", "## Prefill", "## Decoding"))
    return first


def test_a_peer_with_our_weights_has_our_losses_and_tokens(rows: list[dict[str, Any]]) -> None:
    theirs = [row for row in rows if row["peer"].startswith("transformers")]
    trained = [row for row in theirs if row["job"] == "train" and row["median_s"] is not None]
    assert [row["same_loss"] for row in trained] == [True]
    decoded = [row for row in theirs if row["job"] != "train"]
    assert [row["same_tokens"] for row in decoded] == [True] * 4


def test_rows_have_times_ratios_and_what_theory_counts(rows: list[dict[str, Any]]) -> None:
    timed = [row for row in rows if row["median_s"] is not None]
    assert len(timed) == 3 + 2 * 4
    for row in timed:
        assert 0 < row["p10"] <= row["median_s"] <= row["p90"]
        assert 0 < row["ratio_p10"] <= row["ratio"] <= row["ratio_p90"]
        assert row["cpu_s"] > 0
        assert row["rounds"] == 2
        assert (row["ratio"] == 1) == (row["peer"] == "archbench")
        assert (row["work"] is not None) == (row["peer"] == "archbench")


def test_another_model_is_not_called_the_same_and_what_takes_no_part_says_why(rows: list[dict[str, Any]]) -> None:
    nanogpt = [row for row in rows if row["peer"] == "nanoGPT"]
    assert all(row["same_loss"] is row["same_tokens"] is None and "GELU" in row["why_not"] for row in nanogpt)
    (static,) = (row for row in rows if row["peer"] == "transformers, static cache" and row["job"] == "train")
    assert static["median_s"] is None
    assert "cache" in static["why_not"]


def test_the_page_has_the_tables_of_the_committed_rows(peers: Any) -> None:
    rows = peers.read(ROOT / "results" / "reference" / "peers-zen4" / "rows.csv")
    page = (ROOT / "docs" / "explanation" / "performance.md").read_text()
    assert peers.markdown_of(rows).strip() in page, "benchmarks/peers.py --from … --markdown … writes them"
    assert {row["architecture"] for row in rows} == {*peers.ORDER}
    assert not [row for row in rows if False in (row["same_loss"], row["same_tokens"])]


def test_wrong_weights_are_seen(peers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from peers.transformers_peer import Transformers  # type: ignore[import-not-found]

    class Swapped(Transformers):  # type: ignore[misc]
        def __init__(self, cell: Any) -> None:
            super().__init__(cell)
            weight = self.model.transformer.h[0].mlp.c_fc.weight
            weight.data = weight.data.flip(0)

    monkeypatch.setitem(peers.PEERS, "transformers", peers.PEERS["transformers"].__class__(Swapped))
    found = peers.main([*TINY, "--peer=transformers", "--job=train", "--length=16"])
    assert [row["same_loss"] for row in found] == [True, False]


def test_a_peer_that_is_not_installed_is_named(peers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = peers.PEERS["transformers"].__class__
    monkeypatch.setitem(peers.PEERS, "litgpt", kind(None, (), "no_such_module", "litgpt"))
    found = peers.main([*TINY, "--peer=litgpt", "--job=train", "--length=16"])
    assert found[1]["median_s"] is None
    assert found[1]["why_not"] == "not installed: pip install litgpt"


@pytest.mark.slow
def test_quick_compares_all_ten_with_all_that_is_installed_and_none_differs(peers: Any, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    command = [sys.executable, str(SCRIPT), "--out", str(out), f"--nanogpt={NANOGPT}"]
    subprocess.run([*command, "--quick", "--page", str(tmp_path / "page.html")], check=True)
    assert "fastest peer" in (tmp_path / "page.html").read_text()
    subprocess.run([*command, "gpt1", "--memory", "--quick", "--job=train", "--peer=nanoGPT"], check=True)
    found = peers.read(out)
    assert {row["architecture"] for row in found} == {*peers.ORDER}
    assert not [row for row in found if False in (row["same_loss"], row["same_tokens"])]
    compared = {row["architecture"] for row in found if row["peer"] != "archbench" and row["median_s"]}
    assert compared >= {*peers.ORDER} - {"rwkv7"}  # whose peers are two packages that may not be there
    assert sum(row["peak_bytes"] is not None for row in found) == 2

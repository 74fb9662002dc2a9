"""Hub data sets: archbench's splits from theirs, and plain words where the package or the text is missing."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from archbench.data.corpora import load_corpus
from archbench.errors import DataError

WITH_DATASETS = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="the optional package datasets is not installed"
)


class Rows:
    """As much of ``datasets.Dataset`` as is used: slices of rows, their number, and the types of columns."""

    def __init__(self, **columns: list[str]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, rows: slice) -> dict[str, list[str]]:
        return {name: texts[rows] for name, texts in self.columns.items()}

    @property
    def features(self) -> dict[str, Any]:
        return {name: SimpleNamespace(dtype="string") for name in self.columns}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str | None], dict[str, Rows]]:
    """What a stand-in for the package ``datasets`` offers: the hub itself cannot be reached from a test."""
    offered: dict[tuple[str, str | None], dict[str, Rows]] = {}
    module = ModuleType("datasets")
    module.load_dataset = lambda name, config: offered[name, config]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return offered


def test_the_hubs_own_splits_are_kept(hub: dict[tuple[str, str | None], dict[str, Rows]]) -> None:
    rows = {split: Rows(text=[f"{split} one", "", f"{split} two"]) for split in ("train", "valid", "test")}
    hub["someone/poems", "small"] = rows
    corpus = load_corpus("hf:someone/poems:small")
    assert [document.text for document in corpus.splits["train"]] == ["train one", "train two"]
    assert [document.text for document in corpus.splits["validation"]] == ["valid one", "valid two"]
    assert [document.text for document in corpus.splits["test"]] == ["test one", "test two"]


def test_a_data_set_without_validation_is_split_by_rows(hub: dict[tuple[str, str | None], dict[str, Rows]]) -> None:
    hub["poems", None] = {"train": Rows(id=["x"] * 20, text=[f"poem {i:02}" for i in range(20)])}
    corpus = load_corpus("hf:poems")
    assert [len(corpus.splits[split]) for split in ("train", "validation")] == [18, 2]
    assert corpus.splits["validation"][-1].text == "poem 19"


def test_columns_that_may_all_be_the_text_are_refused(hub: dict[tuple[str, str | None], dict[str, Rows]]) -> None:
    hub["pairs", None] = {"train": Rows(question=["a"], answer=["b"])}
    with pytest.raises(DataError, match=r"hf:pairs.*question, answer"):
        load_corpus("hf:pairs")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'archbench\[datasets\]'"):
        load_corpus("hf:poems")


@WITH_DATASETS
def test_the_real_package_reads_a_data_set_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "poems"
    folder.mkdir()
    for split in ("train", "validation"):
        rows = [json.dumps({"text": f"{split} {i}\r\n", "stars": i}) for i in range(3)]
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    corpus = load_corpus(f"hf:{folder}")
    assert corpus.to_bytes("train") == b"train 0\r\ntrain 1\r\ntrain 2\r\n"
    assert len(corpus.splits["validation"]) == 3


@WITH_DATASETS
def test_the_real_packages_failure_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it cannot be loaded"):
        load_corpus(f"hf:{tmp_path}/absent")

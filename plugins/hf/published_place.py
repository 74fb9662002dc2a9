"""Where ``hf:PLACE`` leads: a folder, a ``config.json``, a name on the hub, or what one of these was before."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archbench.data.cache import cache_folder, write_atomically
from archbench.errors import CheckpointError, StorageError, UnknownNameError, one_line
from archbench.files.loader import read_json
from archbench.files.seal import sealed
from archbench.training.weights import WEIGHTS, tensor_shapes

CONFIG = "config.json"
_INDEX = f"{WEIGHTS}.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_OTHER_WEIGHTS = (*_PICKLES, ".safetensors", ".gguf", ".h5", ".msgpack", ".onnx")
_FOUND = re.compile(r"(?P<label>[\w.-]+)@(?P<digest>[0-9a-f]{12})")
_ON_THE_HUB = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w.-]+?)(?P<config>/config\.json)?")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "embeddings.weight", "lm_head.weight")


@dataclass(frozen=True)
class Place:
    """A configuration and where it is from.

    Attributes:
        name: ``LABEL@DIGEST``: the folder's or the model's name, and 12 hex digits of the configuration's content.
        published: the content of ``config.json``.
        source: the absolute path of the ``config.json``, or ``ORG/NAME`` on the hub.
        revision: the hub's commit, or ``sha256:`` and the digest.
        weights: the folder of its weights; None for a configuration alone.
    """

    name: str
    published: Mapping[str, Any]
    source: str
    revision: str
    weights: Path | None


def found(place: str) -> Place:
    """What ``place`` leads to. It is kept in the cache under its name, by which other processes find it.

    Raises:
        UnknownNameError: there is nothing of the kind.
        CheckpointError: its configuration or weights cannot be used.
        StorageError: the cache cannot be written.
    """
    if (known := _FOUND.fullmatch(place)) and not Path(place).exists():
        return _remembered(known["label"], known["digest"])
    path = Path(place).expanduser()
    if path.exists():
        one = _in_folder(path.resolve()) if path.is_dir() else _in_file(path.resolve())
    elif named := _ON_THE_HUB.fullmatch(place):
        one = _on_the_hub(named["repository"], config_alone=named["config"] is not None)
    else:
        step = "Name a folder with config.json, a config.json, or ORG/NAME on the hub"
        raise UnknownNameError(f"hf:{place}", "there is no such file or folder", step)
    _remember(one)
    return one


def _in_folder(folder: Path) -> Place:
    file = folder / CONFIG
    if not file.is_file():
        step = "Name the folder that transformers saved, or a config.json"
        raise CheckpointError(f"hf:{folder}", f"it holds no {CONFIG}", step)
    one = _in_file(file)
    beside = sorted(path.name for path in folder.iterdir())
    weights = [name for name in beside if name.endswith((*_OTHER_WEIGHTS, _INDEX))]
    if not weights:
        return one
    if not any((folder / name).is_file() for name in (WEIGHTS, _INDEX)):
        what = "a pickle, which may hold code" if weights[0].endswith(_PICKLES) else f"not {WEIGHTS}"
        step = f"Save it with transformers' save_pretrained, or train from scratch: hf:{file}"
        raise CheckpointError(f"hf:{folder}", f"its weights are in {weights[0]}, {what}", step)
    _require_vocabulary(folder, one.published)
    return Place(one.name, one.published, one.source, one.revision, folder)


def _in_file(file: Path) -> Place:
    step = "Correct it, or get it again"
    published = read_json(file, error=CheckpointError, culprit=f"configuration {file}", next_step=step)
    if not isinstance(published, dict) or not isinstance(published.get("model_type"), str):
        raise CheckpointError(f"configuration {file}", "it has no model_type, so it is not transformers'", step)
    digest = _digest(published)
    label = re.sub(r"[^\w.-]+", "-", file.parent.name if file.name == CONFIG else file.stem).strip("-") or "model"
    return Place(f"{label}@{digest}", published, str(file), f"sha256:{digest}", None)


def _on_the_hub(repository: str, *, config_alone: bool) -> Place:
    from huggingface_hub import snapshot_download

    wanted = [CONFIG] if config_alone else [CONFIG, "*.safetensors", "*.safetensors.index.json", "tokenizer.json"]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=wanted))
    except Exception as error:  # noqa: BLE001 - the hub's errors have no common base
        cause = f"it is no file here, not in the hub's cache, and cannot be downloaded ({one_line(error)})"
        step = f"Check the name; or run 'hf download {repository}' where there is a network, and bring the folder"
        raise CheckpointError(f"hf:{repository}", cause, step) from None
    one = _in_file(folder / CONFIG) if config_alone else _in_folder(folder)
    if not config_alone and one.weights is None:
        step = f"For its configuration alone, trained from scratch: hf:{repository}/{CONFIG}"
        raise CheckpointError(f"hf:{repository}", "it has no safetensors", step)
    label, digest = repository.rpartition("/")[2], _digest(one.published)
    return Place(f"{label}@{digest}", one.published, repository, folder.name, one.weights)


def _require_vocabulary(folder: Path, published: Mapping[str, Any]) -> None:
    """See, in the headers of the weights, that there is a row for each id."""
    for file in sorted(folder.glob("*.safetensors")):
        for name, shape in tensor_shapes(file).items():
            if name.endswith(_EMBEDDINGS) and shape[0] != (V := published.get("vocab_size", shape[0])):
                cause = f"its vocab_size is {V}, and {name} of its weights has {shape[0]} rows"
                raise CheckpointError(f"configuration {folder / CONFIG}", cause, "Get both from one source")


def _digest(published: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(published, sort_keys=True).encode()).hexdigest()[:12]


def _file(name: str) -> Path:
    return cache_folder() / "hf" / f"{name}.json"


def _remember(one: Place) -> None:
    record = {
        "published": one.published,
        "source": one.source,
        "revision": one.revision,
        "weights": one.weights and str(one.weights),
    }
    text = sealed(record, indent=1).encode()
    write_atomically(_file(one.name), lambda file: file.write(text))


def _remembered(label: str, digest: str) -> Place:
    file, step = _file(f"{label}@{digest}"), "Name its folder or config.json again: archbench show hf:PLACE"
    if not file.is_file():
        cause = f"no configuration of that digest has been named here ({file} is missing)"
        raise UnknownNameError(f"hf:{label}@{digest}", cause, step)
    step = f"Delete it. {step}"
    record = read_json(file, error=StorageError, culprit=f"cache file {file}", next_step=step, sealing="required")
    if _digest(record["published"]) != digest:
        raise StorageError(f"cache file {file}", "it holds the configuration of another digest", step)
    weights = record["weights"]
    return Place(
        f"{label}@{digest}", record["published"], record["source"], record["revision"], weights and Path(weights)
    )

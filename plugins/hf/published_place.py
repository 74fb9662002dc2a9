"""Where ``hf:PLACE`` and ``hf-code:PLACE`` lead: a folder, a ``config.json``, a name on the hub, or what one of these
was before."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from archbench.data.cache import cache_folder, write_atomically
from archbench.errors import CheckpointError, StorageError, UnknownNameError, one_line
from archbench.files.loader import read_json
from archbench.files.seal import sealed
from archbench.training.weights import WEIGHTS, sampled_digest, tensor_shapes

from .code_beside import code_files, digest_of_code, keep_code, kept_code

CONFIG = "config.json"
_INDEX = f"{WEIGHTS}.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_OTHER_WEIGHTS = (*_PICKLES, ".safetensors", ".gguf", ".h5", ".msgpack", ".onnx")
_FOUND = re.compile(r"(?P<label>[\w.-]+)@(?P<digest>[0-9a-f]{12})")
_ON_THE_HUB = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w.-]+?)(?P<config>/config\.json)?(@(?P<commit>[0-9a-f]{40}))?")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "embeddings.weight", "lm_head.weight")


@dataclass(frozen=True)
class Place:
    """A configuration and where it is from.

    Attributes:
        name: ``LABEL@DIGEST``: the folder's or the model's name, and 12 hex digits of the content of the configuration,
            of a sample of the weights if there are any, and of the code if it is asked for.
        published: the content of ``config.json``.
        source: the absolute path of the ``config.json``, or ``ORG/NAME`` on the hub.
        revision: the hub's commit, or ``sha256:`` and the digest.
        weights: the folder of its weights; None for a configuration alone.
        sample: :func:`archbench.training.weights.sampled_digest` of the weights.
        code: digest of the code that is asked for.
    """

    name: str
    published: Mapping[str, Any]
    source: str
    revision: str
    weights: Path | None = None
    sample: str | None = None
    code: str | None = None

    @property
    def digest(self) -> str:
        return self.name.rpartition("@")[2]


def found(place: str, *, with_code: bool = False) -> Place:
    """What ``place`` leads to. It is kept in the cache under its name, by which other processes find it.

    Args:
        with_code: the code beside the configuration is kept too, and its content is part of the name. None of it runs.

    Raises:
        UnknownNameError: there is nothing of the kind.
        CheckpointError: its configuration, weights or code cannot be used.
        StorageError: the cache cannot be written.
    """
    prefix = "hf-code" if with_code else "hf"
    if (known := _FOUND.fullmatch(place)) and not Path(place).exists():
        return _remembered(prefix, place, known["digest"])
    path = Path(place).expanduser()
    if path.exists():
        path = path.resolve()
        one, beside = (_in_folder(path), path) if path.is_dir() else (_in_file(path), path.parent)
    elif named := _ON_THE_HUB.fullmatch(place):
        one, beside = _on_the_hub(named, with_code=with_code)
    else:
        step = "Name a folder with config.json, a config.json, or ORG/NAME on the hub"
        raise UnknownNameError(f"{prefix}:{place}", "there is no such file or folder", step)
    files = code_files(beside) if with_code else {}
    one = _named(one, digest_of_code(files) if with_code else None)
    if with_code:
        keep_code(one.name, files)
    _remember(one)
    return one


def _named(one: Place, code: str | None) -> Place:
    """With all that identifies it in its name."""
    digest = _digest(one.published, one.sample, code)
    revision = f"sha256:{digest}" if one.revision.startswith("sha256:") else one.revision
    return replace(one, name=f"{one.name.rpartition('@')[0]}@{digest}", revision=revision, code=code)


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
    return replace(one, weights=folder, sample=sampled_digest(folder))


def _in_file(file: Path) -> Place:
    step = "Correct it, or get it again"
    published = read_json(file, error=CheckpointError, culprit=f"configuration {file}", next_step=step)
    if not isinstance(published, dict) or not isinstance(published.get("model_type"), str):
        raise CheckpointError(f"configuration {file}", "it has no model_type, so it is not transformers'", step)
    digest = _digest(published)
    label = re.sub(r"[^\w.-]+", "-", file.parent.name if file.name == CONFIG else file.stem).strip("-") or "model"
    return Place(f"{label}@{digest}", published, str(file), f"sha256:{digest}")


def _on_the_hub(named: re.Match[str], *, with_code: bool) -> tuple[Place, Path]:
    """What a repository holds, and the folder of the hub's cache that has it. No code is downloaded."""
    from huggingface_hub import snapshot_download

    repository, commit, config_alone = named["repository"], named["commit"], named["config"] is not None
    name = f"{'hf-code' if with_code else 'hf'}:{named[0]}"
    if with_code and commit is None:
        step = f"Name the commit that you have read: {name}@COMMIT (40 digits)"
        raise CheckpointError(name, "code on the hub can change from one day to the next", step)
    wanted = [CONFIG] if config_alone else [CONFIG, "*.safetensors", "*.safetensors.index.json", "tokenizer.json"]
    try:
        folder = Path(snapshot_download(repository, revision=commit, allow_patterns=wanted, local_files_only=with_code))
    except Exception as error:  # noqa: BLE001 - the hub's errors have no common base
        revision = f" --revision {commit}" if commit else ""
        cause = f"it is no file here, not in the hub's cache, and cannot be downloaded ({one_line(error)})"
        download = f"hf download {repository}{revision}"
        step = f"Check the name; or run '{download}' where there is a network, and bring the folder"
        if with_code:
            cause = "it is no folder here, and that commit is not in the hub's cache; code is not downloaded"
            step = f"Run: {download}"
        raise CheckpointError(name, cause, step) from None
    one = _in_file(folder / CONFIG) if config_alone else _in_folder(folder)
    if not config_alone and one.weights is None:
        alone = name.replace(repository, f"{repository}/{CONFIG}")
        step = f"For its configuration alone, trained from scratch: {alone}"
        raise CheckpointError(name, "it has no safetensors", step)
    label = repository.rpartition("/")[2]
    return replace(one, name=f"{label}@{one.digest}", source=repository, revision=folder.name), folder


def _require_vocabulary(folder: Path, published: Mapping[str, Any]) -> None:
    """See, in the headers of the weights, that there is a row for each id."""
    for file in sorted(folder.glob("*.safetensors")):
        for name, shape in tensor_shapes(file).items():
            if name.endswith(_EMBEDDINGS) and shape[0] != (V := published.get("vocab_size", shape[0])):
                cause = f"its vocab_size is {V}, and {name} of its weights has {shape[0]} rows"
                raise CheckpointError(f"configuration {folder / CONFIG}", cause, "Get both from one source")


def _digest(published: Mapping[str, Any], sample: str | None = None, code: str | None = None) -> str:
    digest = hashlib.sha256(json.dumps(published, sort_keys=True).encode())
    for what, content in (("weights", sample), ("code", code)):
        if content is not None:
            digest.update(f"\0{what} {content}".encode())
    return digest.hexdigest()[:12]


def _file(name: str) -> Path:
    return cache_folder() / "hf" / f"{name}.json"


def _remember(one: Place) -> None:
    record = {
        "published": one.published,
        "source": one.source,
        "revision": one.revision,
        "weights": one.weights and str(one.weights),
        "sample": one.sample,
    }
    text = sealed(record, indent=1).encode()
    write_atomically(_file(one.name), lambda file: file.write(text))


def _remembered(prefix: str, name: str, digest: str) -> Place:
    file, step = _file(name), f"Name its folder or config.json again: archbench show {prefix}:PLACE"
    if not file.is_file():
        cause = f"none of that digest has been named here ({file} is missing)"
        raise UnknownNameError(f"{prefix}:{name}", cause, step)
    step = f"Delete it. {step}"
    record = read_json(file, error=StorageError, culprit=f"cache file {file}", next_step=step, sealing="required")
    code = digest_of_code(code_files(kept_code(name))) if prefix == "hf-code" else None
    if _digest(record["published"], record.get("sample"), code) != digest:
        raise StorageError(f"cache file {file}", f"it, or the code of {name}, is that of another digest", step)
    weights = record["weights"]
    where = record["source"], record["revision"]
    return Place(name, record["published"], *where, weights and Path(weights), record.get("sample"), code)

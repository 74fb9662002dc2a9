"""Weights in files: writes safetensors; reads safetensors, GGUF and torch files, without running code."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path

import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from archbench.data.gguf import is_gguf
from archbench.errors import CheckpointError, one_line
from archbench.files.loader import open_regular, read_model

WEIGHTS = "model.safetensors"
SAMPLED = 4096
"""Bytes of a tensor, three times, that tell it from another."""
_LONGEST_HEADER = 100_000_000
_SHARDS = (".safetensors", ".bin")
_AGAIN = "Get the file again, or name another"
_INDEX = ".index.json"
_FOLDER_FILES = (WEIGHTS, f"{WEIGHTS}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


class _Index(BaseModel):
    """The content of an ``.index.json``, as transformers writes it: name of each tensor -> its file."""

    weight_map: dict[str, str]


def digest_of(path: Path) -> str:
    """SHA-256 over the files that :func:`read_weights` reads, in their order.

    Raises:
        CheckpointError: one cannot be read.
    """
    digest = hashlib.sha256()
    for file in _files(path):
        try:
            with open_regular(file) as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        except OSError as error:
            raise _damaged(file, f"it cannot be read ({error.strerror or error})") from None
    return digest.hexdigest()


def sampled_digest(path: Path) -> str:
    """SHA-256 over the header and size of each safetensors file at ``path`` and :data:`SAMPLED` bytes at the beginning,
    the middle and the end of each tensor: milliseconds for weights of any size, which :func:`digest_of` reads whole.

    Raises:
        CheckpointError: one cannot be read.
    """
    digest = hashlib.sha256()
    for file in _files(path):
        try:
            with open_regular(file) as content:
                for part in _sample(content) if file.suffix == ".safetensors" else [content.read(_LONGEST_HEADER)]:
                    digest.update(hashlib.sha256(part).digest())
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise _unsafe(file, error) from None
    return digest.hexdigest()


def _sample(file: BufferedReader) -> Iterator[bytes]:
    length = int.from_bytes(file.read(8), "little")
    if length > _LONGEST_HEADER:
        raise ValueError("its header is too long")
    header = file.read(length)
    yield header
    yield str(file.seek(0, os.SEEK_END)).encode()
    for name, tensor in json.loads(header).items():
        if name != "__metadata__":
            begin, end = tensor["data_offsets"]
            for start in (begin, max(begin, (begin + end - SAMPLED) // 2), max(begin, end - SAMPLED)):
                file.seek(8 + length + start)
                yield file.read(min(SAMPLED, end - start))


def write_weights(state_dict: Mapping[str, Tensor], path: Path) -> None:
    """Write a ``state_dict`` as safetensors. Tied weights are written once; the metadata names their aliases.

    Raises:
        OSError, SafetensorError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first_name: dict[tuple[object, ...], str] = {}
    for name, tensor in state_dict.items():
        tensor = tensor.detach()
        identity = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and identity in first_name:
            aliases[name] = first_name[identity]
            continue
        first_name[identity] = name
        whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        # safetensors rejects tensors that share storage, such as slices of one buffer.
        tensors[name] = (tensor if whole else tensor.clone(memory_format=torch.contiguous_format)).cpu()
    save_file(tensors, path, metadata={"format": "pt", **aliases})


def read_weights(path: Path) -> dict[str, Tensor]:
    """A ``state_dict`` from a folder or a file, on the CPU.

    A folder holds ``model.safetensors`` or ``pytorch_model.bin``, whole or in shards with an ``.index.json``
    (transformers' layout); a file is safetensors, GGUF, or a torch file that holds only tensors.

    Raises:
        CheckpointError: the file is missing, damaged, or a pickle that holds more than tensors.
    """
    first, *shards = _files(path)
    if first.name.endswith(_INDEX):
        weights = {name: tensor for shard in shards for name, tensor in _read_file(shard).items()}
        if missing := sorted(_placed(first).keys() - weights.keys()):
            raise _damaged(first, f"its shards lack {missing[0]!r} and {len(missing) - 1} more")
        return weights
    return _read_file(first)


def require_whole(path: Path) -> None:
    """See, without reading a tensor, that each safetensors file at ``path`` can be read and holds what its index says.

    Raises:
        CheckpointError: a file is missing or damaged, or lacks a tensor.
    """
    first, *shards = _files(path)
    placed = _placed(first) if first.name.endswith(_INDEX) else {}
    for file in shards or [first]:
        if file.suffix != ".safetensors":
            continue
        expected = {name for name, shard in placed.items() if shard == file.name}
        if missing := sorted(expected - tensor_shapes(file).keys()):
            raise _damaged(first, f"{file.name} lacks {len(missing)} of its tensors, {missing[0]!r} for one")


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Name of each tensor in a safetensors file -> its shape; only the header is read.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise _unsafe(path, error) from None


def require_numbers(weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights with NaN in them: nothing that is measured of them means anything.

    Raises:
        CheckpointError: naming the tensor.
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and tensor.element_size() > 1 and bool(tensor.isnan().any()):
            raise _damaged(path, f"its tensor {name!r} holds NaN")


def _files(path: Path) -> list[Path]:
    """The files that hold the weights at ``path``; an index comes first."""
    if path.is_dir():
        names = [name for name in _FOLDER_FILES if (path / name).is_file()]
        if not names:
            raise CheckpointError(
                f"weights folder {path}", f"it holds none of {', '.join(_FOLDER_FILES)}", "Name the weights file itself"
            )
        path = path / names[0]
    shards = sorted(set(_placed(path).values())) if path.name.endswith(_INDEX) else []
    files = [path, *(path.parent / shard for shard in shards)]
    if missing := [file for file in files if not file.is_file()]:
        raise CheckpointError(f"weights {missing[0]}", "there is no such file", "Check the path")
    return files


def _read_file(path: Path) -> dict[str, Tensor]:
    if is_gguf(path):
        from archbench.training.gguf_llama import gguf_weights

        return gguf_weights(path)
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def _placed(index: Path) -> dict[str, str]:
    """Name of each tensor -> name of its file, beside the index."""
    placed = read_model(_Index, index, error=CheckpointError, culprit=f"weights {index}", next_step=_AGAIN).weight_map
    if outside := [shard for shard in placed.values() if Path(shard).name != shard or not shard.endswith(_SHARDS)]:
        raise CheckpointError(
            f"weights {index}",
            f"it names a file outside its folder, or none of weights: {outside[0]!r}",
            "Get the weights from a source you trust",
        )
    return placed


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        _refuse_doubled_names(path)
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            aliases = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise _unsafe(path, error) from None
    # Metadata of tied weights, alias -> name, as safetensors.torch.save_model writes it.
    for alias, name in aliases.items():
        if alias not in weights and name in weights:
            weights[alias] = weights[name]
    return weights


def _refuse_doubled_names(path: Path) -> None:
    """The library takes the last of several tensors of one name."""

    def distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"its name {max(names, key=names.count)!r} is there twice")
        return found

    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length <= _LONGEST_HEADER:  # the library refuses longer ones
            with contextlib.suppress(RecursionError, json.JSONDecodeError, UnicodeDecodeError):  # as it does these
                json.loads(file.read(length), object_pairs_hook=distinct)


def _read_torch(path: Path) -> dict[str, Tensor]:
    weights = read_torch_file(path, f"weights {path}", "Get the weights as .safetensors, or the file again")
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        cause, remedy = "it is not a flat mapping of names to tensors", "Save only the model's state_dict()"
        raise CheckpointError(f"weights {path}", cause, remedy)
    return weights


def read_torch_file(path: Path, culprit: str, remedy: str) -> object:
    """Load a file of ``torch.save`` that holds only tensors and plain values, on the CPU, without running its code.

    Raises:
        CheckpointError: the file is damaged, or a pickle that holds more.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError as error:
        raise CheckpointError(culprit, f"it asks for more memory than there is ({one_line(error)})", remedy) from None
    except pickle.UnpicklingError:
        cause = "it is damaged, or a pickle that holds more than tensors; archbench runs no code from files"
        raise CheckpointError(culprit, cause, remedy) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        raise CheckpointError(culprit, f"it cannot be read as a torch file ({one_line(error)})", remedy) from None


def _damaged(path: Path, cause: str) -> CheckpointError:
    return CheckpointError(f"weights {path}", cause, _AGAIN)


def _unsafe(path: Path, error: Exception) -> CheckpointError:
    return _damaged(path, f"it cannot be read as safetensors ({error})")

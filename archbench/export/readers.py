"""Who reads an exported folder, by its ``model_type``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reader:
    """A library that computes what was exported.

    Attributes:
        library: its name on the package index.
        code: lines that load the folder ``DIR``.
        note: what else a reader must know; a sentence, or nothing.
        torch_file: whether it reads a file of ``torch.save``, beside the safetensors that others read.
    """

    library: str
    code: str
    note: str = ""
    torch_file: bool = False


_AUTO = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("DIR")
tokenizer = AutoTokenizer.from_pretrained("DIR")"""

_RWKV = """\
from rwkv.model import RWKV  # set RWKV_V7_ON=1 in the environment before
from transformers import AutoTokenizer

model = RWKV("DIR/model", strategy="cpu fp32")
tokenizer = AutoTokenizer.from_pretrained("DIR")"""

_OTHERS = {
    "rwkv_x070": Reader(
        "rwkv",
        _RWKV,
        "transformers has no RWKV-7. model.pth has BlinkDL's names, which the package rwkv reads; model.safetensors "
        "has the same tensors, and config.json their sizes, which archbench reads.",
        torch_file=True,
    ),
    "gated_deltanet": Reader(
        "flash-linear-attention",
        f"import fla  # registers the class\n{_AUTO}",
        "transformers alone has no Gated DeltaNet: flash-linear-attention adds it, and needs a GPU. The names of "
        "weights and fields are its own.",
    ),
}


def reader_of(config: Mapping[str, Any]) -> Reader:
    """The reader of a ``config.json``."""
    if "auto_map" in config:
        code = _AUTO.replace('from_pretrained("DIR")', 'from_pretrained("DIR", trust_remote_code=True)', 1)
        return Reader("transformers", code, "It is built by the Python files beside it, which run when it is loaded.")
    return _OTHERS.get(str(config["model_type"]), Reader("transformers", _AUTO))

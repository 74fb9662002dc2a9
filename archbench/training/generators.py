"""The random number generators of one device, kept as they are while something else draws from them."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def forked_generators(device: torch.device) -> AbstractContextManager[None]:
    """Within this context torch's generators of the CPU and of ``device`` may be used; afterwards they are as before.

    Without a device torch forks the generators of every GPU, which makes a context on each and warns.
    """
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])

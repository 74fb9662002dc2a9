"""What bytes tokens stand for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from archbench.data.token_stream import TokenArray


class Spelling:
    """Tokens to the bytes that they spell.

    Args:
        table: the bytes of each id.
    """

    def __init__(self, table: Sequence[bytes]) -> None:
        self._table = table
        self.lengths = np.array([len(one) for one in table], dtype=np.int64)
        self._spelt = self.lengths > 0
        single = self.lengths.max() == 1
        self._bytes = np.array([one[0] if one else 0 for one in table], dtype=np.uint8) if single else None

    def __call__(self, ids: TokenArray) -> bytes:
        """The bytes of ``ids``, shape (N,)."""
        if self._bytes is None:
            return b"".join(map(self._table.__getitem__, ids.tolist()))
        # Without a Python object for each token, where there are as many tokens as bytes.
        spelt = self._spelt[ids]
        return self._bytes[ids if spelt.all() else ids[spelt]].tobytes()

"""Whether the same sequences are heard at every look, and in every run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST = 2**16  # numbers of a tensor that are looked at
DEEPEST = 6  # objects within objects


@final
class Audience:
    """A digest of the batches that are heard, in their order."""

    def __init__(self) -> None:
        self._batches: dict[int, bytes] = {}

    def begin(self) -> None:
        """Forget all batches."""
        self._batches.clear()

    def join(self, others: Audience) -> None:
        """Take in batches of another process."""
        self._batches |= others._batches

    def hear(self, number: int, batch: Any) -> None:
        """Take a batch in."""
        digest = hashlib.blake2b(digest_size=16)
        for part in _parts(batch):
            digest.update(part)
        self._batches[number] = digest.digest()

    @property
    def batches(self) -> dict[int, NDArray[np.uint8]]:
        """The digest of each batch, ``(16,)``, by its number."""
        return {number: np.frombuffer(digest, np.uint8) for number, digest in self._batches.items()}

    @property
    def digest(self) -> str:
        """Of all batches heard since the first."""
        whole = hashlib.blake2b(b"".join(self._batches[number] for number in sorted(self._batches)), digest_size=16)
        return whole.hexdigest()


def _parts(batch: Any, depth: int = 0) -> Iterator[bytes]:
    """What a batch holds, whatever it is made of; objects of unknown kinds, and what lies deeper, do not count."""
    if depth > DEEPEST:
        return
    if isinstance(batch, Tensor):
        array = batch.detach() if batch.layout == torch.strided else batch.detach().to_dense()
        yield f"{tuple(array.shape)}".encode()
        some = array.flatten()[:MOST].cpu()
        yield np.ascontiguousarray((some.float() if some.is_floating_point() else some).numpy()).tobytes()
    elif isinstance(batch, np.ndarray) and batch.dtype.hasobject:
        yield from _parts(batch.ravel()[:MOST].tolist(), depth + 1)
    elif isinstance(batch, np.ndarray):
        yield f"{batch.shape}".encode() + np.ascontiguousarray(batch.ravel()[:MOST]).tobytes()
    elif isinstance(batch, Mapping):
        for key in batch:
            yield str(key).encode()
            yield from _parts(batch[key], depth + 1)
    elif isinstance(batch, (list, tuple)):
        for part in batch:
            yield from _parts(part, depth + 1)
    elif isinstance(batch, (str, bytes, int, float, bool, np.generic, Enum)):
        yield repr(batch).encode()
    elif hasattr(batch, "__dict__"):
        yield from _parts(vars(batch), depth + 1)

"""Masked CRC-32C (Castagnoli), as TensorBoard's record files carry it: of many stretches at once, or of one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WIDTH = 4  # bytes of a checksum; it follows what it is of


def checked(data: NDArray[np.uint8], begins: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether stretches of bytes have the checksums that follow them, ``(n,)``.

    Args:
        data: a whole file.
        begins: of the stretches, ``(n,)``.
        lengths: of the stretches, ``(n,)``, increasing.
    """
    crc = np.full(len(begins), 0xFFFFFFFF, np.uint32)
    for place in range(int(lengths[-1]) if len(lengths) else 0):
        left = slice(int(np.searchsorted(lengths, place, side="right")), None)
        crc[left] = _TABLE[(crc[left] ^ data[begins[left] + place]) & 0xFF] ^ (crc[left] >> 8)
    stored = data[(begins + lengths)[:, None] + np.arange(WIDTH)].view("<u4")[:, 0]
    found: NDArray[np.bool_] = stored == _masked(~crc)
    return found


def is_intact(content: bytes, begin: int, length: int) -> bool:
    """The same of a single stretch; faster where it is long."""
    crc = 0xFFFFFFFF
    for byte in content[begin : begin + length]:
        crc = _LIST[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    stored = int.from_bytes(content[begin + length : begin + length + WIDTH], "little")
    return stored == int(_masked(~np.array([crc], np.uint32))[0])


def _masked(crc: NDArray[np.uint32]) -> NDArray[np.uint32]:
    turned = (crc >> np.uint32(15)) | (crc << np.uint32(17))
    masked: NDArray[np.uint32] = turned + np.uint32(0xA282EAD8)
    return masked


def _crc_table() -> NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table


_TABLE = _crc_table()
_LIST: list[int] = _TABLE.tolist()

"""Computes CRC-32C (Castagnoli; RFC 3720, appendix B.4) with array operations.

A CRC is linear over the bits. So the data are cut into lanes that advance together, two
bytes a step, and the results of the lanes are combined in pairs.
"""

import functools

import numpy as np

POLYNOMIAL = 0x82F63B78  # with its bits reversed
ONES = 0xFFFFFFFF


def crc32c(data: np.ndarray) -> int:
    """Returns the checksum of a contiguous uint8 array (N,)."""
    state = ONES
    for lanes in (1 << 14, 1 << 7, 1):
        steps = len(data) // (2 * lanes)
        if steps:
            state = _advance(state, data[: 2 * lanes * steps], lanes)
            data = data[2 * lanes * steps :]
    if len(data):
        low = state ^ int(data[0])
        state = int(_zeros(1)[low & 0xFF]) ^ (state >> 8)
    return state ^ ONES


def masked(crc: int) -> int:
    """Returns a checksum as LevelDB stores it: rotated, plus a constant."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & ONES


def _advance(state: int, data: np.ndarray, lanes: int) -> int:
    table = _zeros(2)
    rows = data.view("<u2").reshape(lanes, -1)
    states = np.zeros(lanes, np.uint32)
    states[0] = state
    for start in range(0, rows.shape[1], 256):  # blocks that fit the cache
        for column in np.ascontiguousarray(rows[:, start : start + 256].T):
            states = table[(states ^ column) & 0xFFFF] ^ (states >> 16)
    length = 2 * rows.shape[1]
    while len(states) > 1:
        states = _after_zeros(states[::2], length) ^ states[1::2]
        length *= 2
    return int(states[0])


@functools.cache
def _zeros(count: int) -> np.ndarray:
    """Returns (256 ** count,) the effect of a state's low bytes after `count` bytes."""
    table = np.arange(256**count, dtype=np.uint32)
    for _ in range(8 * count):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(POLYNOMIAL), table >> 1)
    return table


def _after_zeros(states: np.ndarray, length: int) -> np.ndarray:
    """Returns the states after `length` zero bytes, a linear map applied bit by bit."""
    result = np.zeros_like(states)
    for bit, column in enumerate(_columns(length)):
        result ^= np.where((states >> np.uint32(bit)) & 1, column, np.uint32(0))
    return result


@functools.lru_cache(1024)
def _columns(length: int) -> np.ndarray:
    """Returns (32,) the state after `length` zero bytes for each single bit."""
    if length == 1:
        bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
        return _zeros(1)[bits & 0xFF] ^ (bits >> 8)
    half = _after_zeros(_columns(length // 2), length // 2)
    return _after_zeros(half, 1) if length % 2 else half

"""Kafka's own partitioner, murmur2, for many keys at once. Pure."""

import struct
from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

_SEED = 0x9747B28C
_M = 0x5BD1E995
_32_BITS = 0xFFFFFFFF
_AT_ONCE = 64 * 1024
"""Bytes of keys."""


def partition_of(
    key: bytes | None, partitions: int, otherwise: int, hashes: Mapping[bytes, int] | None = None
) -> int:
    """Where any producer puts this key; without one, the input's partition decides: the same record, the same place."""
    if key is None:
        return otherwise % partitions
    [hashed] = murmur2([key]) if hashes is None else [hashes[key]]
    return (hashed & 0x7FFFFFFF) % partitions


def key_hashes(keys: Iterable[bytes]) -> dict[bytes, int]:
    """What `partition_of` asks for."""
    by_size: defaultdict[int, list[bytes]] = defaultdict(list)
    for key in keys:
        by_size[len(key)].append(key)
    hashes: dict[bytes, int] = {}
    for size, same in by_size.items():
        count = max(1, _AT_ONCE // (size + 1))
        for at in range(0, len(same), count):
            piece = same[at : at + count]
            hashes.update(zip(piece, murmur2(piece), strict=True))
    return hashes


def murmur2(keys: Sequence[bytes]) -> Sequence[int]:
    """Of keys of one length, as Java's client has it, unsigned.

    All at once: each key has 64 bits of one long integer, so that no product of 32 by 32 bits reaches the next one's. One
    by one a UUID takes 5 µs and more, which was a twentieth of an event.
    """
    size, count = len(keys[0]), len(keys)
    padded = -(-size // 8)
    data = array("Q", b"".join([key.ljust(padded * 8, b"\0") for key in keys] if size % 8 else keys))
    ones = int.from_bytes(b"\1\0\0\0\0\0\0\0" * count, "little")
    low = ones * _32_BITS
    hashed = ones * (_SEED ^ size)
    for at in range(padded):
        pair = int.from_bytes(data[at::padded].tobytes(), "little")
        for place, word in ((at * 8, pair & low), (at * 8 + 4, pair >> 32 & low)):
            if place + 4 <= size:
                word = word * _M & low
                word = (word ^ word >> 24 & low) * _M & low
                hashed = (hashed * _M & low) ^ word
            elif place < size:
                hashed = (hashed ^ word) * _M & low
    hashed ^= hashed >> 13 & low
    hashed = hashed * _M & low
    hashed ^= hashed >> 15 & low
    return struct.unpack(f"<{count}Q", hashed.to_bytes(8 * count, "little"))

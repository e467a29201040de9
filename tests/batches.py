"""Kafka's batches as bytes (KIP-98, message format v2), made as they are written: a value may be larger than memory is."""

import asyncio
import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cramjam
from aiokafka import AIOKafkaProducer
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import RecordMetadata

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
CODECS = {"none": NONE, "gzip": GZIP, "snappy": SNAPPY, "lz4": LZ4, "zstd": ZSTD}
_PIECE = 1024**2


@dataclass(frozen=True)
class Repeated:
    """A value that is written without being held."""

    before: bytes
    filling: bytes
    """One byte."""
    times: int
    after: bytes = b""

    def __len__(self) -> int:
        return len(self.before) + self.times + len(self.after)

    def pieces(self) -> Iterator[bytes]:
        yield self.before
        piece = self.filling * _PIECE
        for at in range(0, self.times, _PIECE):
            yield piece[: self.times - at]
        yield self.after

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for piece in self.pieces():
            digest.update(piece)
        return digest.hexdigest()

    def begin(self, size: int) -> bytes:
        """Its first bytes."""
        return (self.before + self.filling * min(size, self.times) + self.after)[:size]


@dataclass(frozen=True)
class EmptyHeaders:
    """So many, each without name and value: two bytes."""

    count: int


Part = bytes | Repeated | None
RecordParts = tuple[Part, Part, Sequence[tuple[bytes, Part]] | EmptyHeaders]
"""Key, value, headers."""


def batch(
    records: Sequence[RecordParts],
    codec: int,
    *,
    base_offset: int = 0,
    level: int | None = None,
    stamped: bool = True,
) -> bytes:
    """One batch. `stamped`: with LogAppendTime, as only a broker may send it."""
    compress, end = _compressor(codec, level)
    payload = bytearray()
    for number, record in enumerate(records):
        for piece in _record(number, *record):
            payload += compress(piece)
    payload += end()
    count = len(records)
    body = struct.pack(">hiqqqhii", codec | 8 * stamped, count - 1, 1_000, 2_000, -1, -1, -1, count) + payload
    return struct.pack(">qiibI", base_offset, len(body) + 9, -1, 2, calc_crc32c(body)) + body


async def publish(
    bootstrap_servers: str, topic: str, partition: int, records: Sequence[RecordParts], codec: int
) -> list[RecordMetadata]:
    """Acknowledged: each one's place in the log, and the broker's timestamp."""
    async with AIOKafkaProducer(
        bootstrap_servers=bootstrap_servers, max_request_size=64 * 1024**2, request_timeout_ms=120_000
    ) as producer:
        built = producer.create_batch()
        built._builder = _Made(batch(records, codec, stamped=False))
        built._relative_offset = len(records)
        sent = await producer.send_batch(built, topic, partition=partition)
        first = await asyncio.wait_for(sent, 120)
        return [first._replace(offset=first.offset + number) for number in range(len(records))]


class _Made:
    """In place of aiokafka's builder."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def build(self) -> bytearray:
        return bytearray(self._data)

    def size(self) -> int:
        return len(self._data)


def _record(
    number: int, key: Part, value: Part, headers: Sequence[tuple[bytes, Part]] | EmptyHeaders
) -> Iterator[bytes]:
    parts: list[Part] = [b"\0\0" + varint(number)]
    for part in (key, value):
        parts += [varint(-1 if part is None else len(part)), part]
    if isinstance(headers, EmptyHeaders):
        parts += [varint(headers.count), Repeated(b"", b"\0", 2 * headers.count)]
    else:
        parts.append(varint(len(headers)))
        for name, content in headers:
            parts += [varint(len(name)), name, varint(-1 if content is None else len(content)), content]
    yield varint(sum(len(part) for part in parts if part is not None))
    for part in parts:
        if isinstance(part, Repeated):
            yield from part.pieces()
        elif part:
            yield part


def varint(value: int) -> bytes:
    """Zigzag, as protocol buffers have it."""
    value = (value << 1) ^ (value >> 63)
    encoded = bytearray()
    while value & ~0x7F:
        encoded.append((value & 0x7F) | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _compressor(codec: int, level: int | None) -> tuple[Callable[[bytes], bytes], Callable[[], bytes]]:
    """What makes of each piece the bytes that are written for it, and the last of them."""
    if codec == NONE:
        return bytes, bytes
    if codec == GZIP:
        gzip = zlib.compressobj(9 if level is None else level, zlib.DEFLATED, 31)
        return gzip.compress, gzip.flush
    if codec == SNAPPY:
        return _xerial()
    made: Any = (
        cramjam.zstd.Compressor(3 if level is None else level)
        if codec == ZSTD
        else cramjam.lz4.Compressor(level=9, content_checksum=False, block_linked=False)
    )

    def compress(piece: bytes) -> bytes:
        made.compress(piece)
        return bytes(made.flush()) if len(piece) >= 64 * 1024 else b""

    return compress, lambda: bytes(made.finish())


def _xerial() -> tuple[Callable[[bytes], bytes], Callable[[], bytes]]:
    waiting = bytearray()
    begun = False

    def blocks(least: int) -> Iterable[bytes]:
        nonlocal begun
        if not begun:
            begun = True
            yield b"\x82SNAPPY\0" + struct.pack(">ii", 1, 1)
        while len(waiting) >= least:
            block = bytes(cramjam.snappy.compress_raw(bytes(waiting[: 32 * 1024])))
            del waiting[: 32 * 1024]
            yield struct.pack(">i", len(block)) + block

    def compress(piece: bytes) -> bytes:
        waiting.extend(piece)
        return b"".join(blocks(32 * 1024))

    return compress, lambda: b"".join(blocks(1))

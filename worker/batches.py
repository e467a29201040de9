"""Fetched bytes → records, whatever the bytes are: a header name needn't be UTF-8, a batch needn't fit into memory.

A batch of at most WHOLE_BYTES when decompressed, as nearly every one is, is read by aiokafka's parser. A longer one is
decompressed while it is read, and of what is larger than is kept of it only the beginning is ever held.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from threading import Thread
from typing import Any

import cramjam
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch

from worker.record import MAX_KEPT_BYTES, CutBytes

WHOLE_BYTES = 2 * 1024**2
_KEY_BYTES = MAX_KEPT_BYTES + 1
"""Kept of a key, or of one header: a byte more than is admitted."""
_PIECE = 64 * 1024

_LOG_OVERHEAD = 12  # base offset and length
_BATCH_HEADER = 61
_MAGIC_AT = 16
_CODEC_AT = 22
_CODEC_MASK = 0x07
_COUNT_AT = slice(57, 61)
_GZIP, _SNAPPY, _LZ4, _ZSTD = 1, 2, 3, 4
_CODECS: dict[int, Any] = {_GZIP: cramjam.gzip, _LZ4: cramjam.lz4, _ZSTD: cramjam.zstd}


class LogRecords:
    """The batches of one fetch response, as aiokafka's MemoryRecords gives them.

    A long one is given only as the first, and alone (what follows it is fetched again): `long` says beforehand that this
    is to be read in small steps. `scratch` is what batches are decompressed into; who makes these shares it.
    """

    def __init__(self, scratch: bytearray, data: bytes) -> None:
        self._scratch = scratch
        self._data = data
        self._at = 0
        self._next = self._read_next()
        self.long = self._next if _is_long(self._next) else None

    def size_in_bytes(self) -> int:
        return len(self._data)

    def has_next(self) -> bool:
        """The last batch of a response may be cut off: it doesn't count."""
        if self._next is None and self.long is None:
            self._next = self._read_next()
            if _is_long(self._next):
                self._next, self._at = None, len(self._data)
        return self._next is not None

    def next_batch(self) -> Any:
        batch, self._next = self._next, None
        return batch

    def _read_next(self) -> Any:
        at, data = self._at, self._data
        if len(data) - at < _LOG_OVERHEAD:
            return None
        end = at + _LOG_OVERHEAD + int.from_bytes(data[at + 8 : at + 12], "big")
        if end > len(data):
            return None
        self._at = end
        batch = memoryview(data)[at:end]
        magic = batch[_MAGIC_AT]
        return Batch(batch, self._scratch) if magic >= 2 else LegacyRecordBatch(batch, magic)


def _is_long(batch: Any) -> bool:
    return isinstance(batch, Batch) and batch.long


@dataclass(slots=True)
class PlainRecord:
    """A record read here: aiokafka's shape."""

    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    checksum: None = None


class Batch:
    """A batch of message format v2 (KIP-98). What it says of itself is aiokafka's to read, its records too if they are
    small enough and every header name is UTF-8."""

    def __init__(self, data: memoryview, scratch: bytearray) -> None:
        self._data = data
        self._batch = DefaultRecordBatch(data)
        self._whole = _decompressed(data, self._batch.compression_type, scratch)
        self.value_bytes = WHOLE_BYTES
        """So much is kept of a value, if it is long."""
        self.stopped = False
        """Somebody else may set it: records that are just being read aren't wanted any more."""

    @property
    def long(self) -> bool:
        return self._whole is None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(iter(self._batch))  # control batches: aiokafka takes their one record so

    def __iter__(self) -> Iterator[Any]:
        if self._whole is None:
            with _Unpacking(self._data[_BATCH_HEADER:], self._batch.compression_type) as payload:
                yield from self._read(_Reader(payload, self))
            return
        yielded = 0
        try:
            for record in DefaultRecordBatch(self._whole):
                yield record
                yielded += 1
        except (UnicodeDecodeError, CorruptRecordException):
            # UnicodeDecodeError is what the C reader raises; the Python one folds it into CorruptRecordException
            plain = self._read(_Reader(BytesIO(self._whole[_BATCH_HEADER:]), self))
            yield from islice(plain, yielded, None)

    def _read(self, payload: "_Reader") -> Iterator[PlainRecord]:
        """A name's odd bytes become surrogate escapes (PEP 383). Raises CorruptRecordException."""
        batch = self._batch
        log_append_time = batch.timestamp_type == 1
        for _ in range(int.from_bytes(self._data[_COUNT_AT], "big")):
            length = payload.varint()
            end = payload.at + length
            payload.exactly(1)  # attributes
            timestamp_delta = payload.varint()
            offset_delta = payload.varint()
            key = payload.part(keep=_KEY_BYTES)
            value = payload.part(keep=self.value_bytes)
            headers = payload.headers(end)
            if payload.at != end:
                raise CorruptRecordException(
                    f"record of {length} bytes at {payload.at} doesn't end where it says"
                )
            yield PlainRecord(
                offset=batch.base_offset + offset_delta,
                timestamp=batch.max_timestamp if log_append_time else batch.first_timestamp + timestamp_delta,
                timestamp_type=batch.timestamp_type,
                key=key,
                value=value,
                headers=headers,
            )


class _Reader:
    """The parts of records, read from a payload of `batch`. Each raises CorruptRecordException."""

    def __init__(self, payload: "BytesIO | _Unpacking", batch: Batch) -> None:
        self._payload = payload
        self._batch = batch
        self.at = 0

    def exactly(self, size: int) -> bytes:
        if self._batch.stopped:
            raise CorruptRecordException("it isn't wanted any more")
        piece = self._payload.read(size)
        if len(piece) < size:
            raise CorruptRecordException("the batch ends in the middle of a record")
        self.at += size
        return piece

    def varint(self) -> int:
        """Zigzag, as protocol buffers have it; at most 64 bits."""
        value = shift = 0
        while shift < 64:
            byte = self.exactly(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (value >> 1) ^ -(value & 1)
            shift += 7
        raise CorruptRecordException("a number of more than 64 bits")

    def part(self, keep: int) -> bytes | None:
        length = self.varint()
        if length < 0:
            return None
        kept = self.exactly(min(length, keep))
        if length <= keep:
            return kept
        digest = hashlib.sha256(kept)
        for piece in self._pieces(length - keep):
            digest.update(piece)
        return CutBytes.of(kept, length, digest.hexdigest())

    def headers(self, end: int) -> list[tuple[str, bytes | None]]:
        """Those that come first, where they are larger than is admitted: the record ends at `end`."""
        headers: list[tuple[str, bytes | None]] = []
        size = 0
        for _ in range(self.varint()):
            if max(size, len(headers)) > MAX_KEPT_BYTES:
                for _ in self._pieces(end - self.at):
                    pass
                break
            name = self.part(keep=_KEY_BYTES) or b""
            content = self.part(keep=_KEY_BYTES)
            headers.append((name.decode("utf-8", "surrogateescape"), content))
            size += len(name) + len(content or b"")
        return headers

    def _pieces(self, size: int) -> Iterator[bytes]:
        while size > 0:
            piece = self.exactly(min(size, _PIECE))
            size -= len(piece)
            yield piece


# Decompressing ----------------------------------------------------------------------------------------------


def _decompressed(data: memoryview, codec: int, scratch: bytearray) -> bytes | memoryview | None:
    """The batch as it would be without compression; None where that is larger than `scratch`."""
    if codec == 0:
        return data
    payload = data[_BATCH_HEADER:]
    whole: bytes | memoryview
    try:
        if codec == _SNAPPY:
            blocks = list(_snappy_blocks(payload))
            if sum(map(cramjam.snappy.decompress_raw_len, blocks)) > len(scratch):
                return None
            whole = b"".join(bytes(cramjam.snappy.decompress_raw(block)) for block in blocks)
        else:
            whole = memoryview(scratch)[: _CODECS[codec].decompress_into(payload, scratch)]
    except Exception:
        return (
            None  # too large, mostly: what else there is shows when it is read, as this partition's trouble
        )
    header = bytearray(data[:_BATCH_HEADER])
    header[_CODEC_AT] &= ~_CODEC_MASK
    return b"".join((header, whole))


def _snappy_blocks(payload: memoryview) -> Iterator[memoryview]:
    """As xerial's library frames them, or one without a frame."""
    if bytes(payload[:8]) != b"\x82SNAPPY\0":
        yield payload
        return
    at = 16
    while at < len(payload):
        end = at + 4 + int.from_bytes(payload[at : at + 4], "big")
        yield payload[at + 4 : end]
        at = end


class _Unpacking:
    """A long payload, decompressed by a thread of its own into a pipe: so it goes on only as it is read.

    cramjam has no decompressor that is fed piece by piece; it can write into a file, though, and a pipe is one.
    """

    def __init__(self, payload: memoryview, codec: int) -> None:
        reading, writing = os.pipe()
        self._pipe = os.fdopen(reading, "rb", buffering=_PIECE)
        self._error: Exception | None = None
        Thread(target=self._write, args=(payload, codec, writing), name="decompress", daemon=True).start()

    def __enter__(self) -> "_Unpacking":
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()  # which ends the thread, too: nobody reads what it writes

    def read(self, size: int) -> bytes:
        """Less only at the end. Raises CorruptRecordException where there is no more because of an error."""
        piece = self._pipe.read(size)
        if len(piece) < size and self._error is not None:
            raise CorruptRecordException(f"it can't be decompressed: {self._error!r}")
        return piece

    def _write(self, payload: memoryview, codec: int, writing: int) -> None:
        try:
            with os.fdopen(writing, "wb") as pipe:
                if codec == _SNAPPY:
                    for block in _snappy_blocks(payload):
                        pipe.write(cramjam.snappy.decompress_raw(block))
                else:
                    file = cramjam.File(f"/dev/fd/{writing}", read=False, write=True, truncate=False)
                    _CODECS[codec].decompress_into(payload, file)
        except Exception as error:
            # without its traceback: that holds `file`, and the reader would wait for its end for ever
            self._error = error.with_traceback(None)

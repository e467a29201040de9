"""A broker whose clock is set: ahead while it runs, back while it is away.

Kafka takes the time that it stamps records with from `SystemTime.milliseconds()` of kafka-clients.jar. The broker is given
that class with another body of this method, which stands first on its class path:

    return System.currentTimeMillis() + new File(path).lastModified();

So the file's modification time, counted from 1970, is how far the clock is ahead. The class is changed byte by byte (JVM
specification, chapter 4): users have no Java compiler. Back only while it is away, since Kafka 4.1 itself gets stuck
otherwise: a transaction that is about to end never does (KAFKA-19888), and its controller writes nothing until the clock
is where it was.
"""

import asyncio
import os
import struct
import zipfile
from datetime import timedelta
from pathlib import Path

from rich.console import Console

from worker.stack.kafka import EmbeddedKafka

_CLASS = "org/apache/kafka/common/utils/SystemTime.class"

# tags of the constant pool, and the bytes that follow each
_UTF8, _CLASS_REF, _STRING, _METHOD_REF, _NAME_AND_TYPE = 1, 7, 8, 10, 12
_SIZES = {
    3: 4, 4: 4, 5: 8, 6: 8, 7: 2, 8: 2, 9: 4, 10: 4, 11: 4, 12: 4, 15: 3, 16: 2, 17: 4, 18: 4, 19: 2, 20: 2,
}  # fmt: skip
_TWO_PLACES = (5, 6)  # long and double


class KafkaWithClock(EmbeddedKafka):
    """As any other broker, until its clock is set."""

    def __init__(self) -> None:
        super().__init__(console=Console(quiet=True))
        self._file = self.directory / "ahead"
        self._file.touch()
        self._set(timedelta())
        jars = [Path(jar) for jar in self._class_path.split(os.pathsep)]
        clients = next(jar for jar in jars if jar.name.startswith("kafka-clients-"))
        patched = self.directory / "classes" / _CLASS
        patched.parent.mkdir(parents=True)
        with zipfile.ZipFile(clients) as jar:
            patched.write_bytes(_with_offset(jar.read(_CLASS), self._file))
        self._class_path = os.pathsep.join([str(self.directory / "classes"), self._class_path])

    def step_ahead(self, to: timedelta) -> None:
        """Of this machine's clock (negative: still behind it), from the next record on."""
        assert to >= self._ahead
        self._set(to)

    async def step_back(self, to: timedelta) -> None:
        """It is killed, and comes back with this clock."""
        await asyncio.to_thread(self.kill)
        self._set(to)
        await asyncio.to_thread(self.start)

    async def set_right(self) -> None:
        """As this machine's."""
        if self._ahead > timedelta():
            await self.step_back(timedelta())
        else:
            self.step_ahead(timedelta())

    def _set(self, ahead: timedelta) -> None:
        self._ahead = ahead
        nanoseconds = ahead // timedelta(microseconds=1) * 1_000
        os.utime(self._file, ns=(nanoseconds, nanoseconds))


def _with_offset(compiled: bytes, file: Path) -> bytes:
    """The class, its `milliseconds()` moved by the modification time of this file."""
    pool = _Pool(compiled)
    now = pool.method("java/lang/System", "currentTimeMillis", "()J")
    before = _code(b"\xb8" + _u2(now) + b"\xad", max_stack=2)  # invokestatic, lreturn
    path = pool.add(_STRING, _u2(pool.utf8(str(file))))
    constructor = pool.method("java/io/File", "<init>", "(Ljava/lang/String;)V")
    last_modified = pool.method("java/io/File", "lastModified", "()J")
    after = _code(
        b"\xb8" + _u2(now)  # invokestatic: currentTimeMillis
        + b"\x00"  # nop: the table of local variables says that `this` ends here, where an instruction has to begin
        + b"\xbb" + _u2(pool.type("java/io/File"))  # new
        + b"\x59"  # dup
        + b"\x13" + _u2(path)  # ldc_w
        + b"\xb7" + _u2(constructor)  # invokespecial
        + b"\xb6" + _u2(last_modified)  # invokevirtual
        + b"\x61\xad",  # ladd, lreturn
        max_stack=5,
    )  # fmt: skip
    body = pool.rest
    assert body.count(before) == 1, f"{_CLASS}: expected milliseconds() to be what it was in Kafka 4.1"
    at = body.index(before)
    length = struct.unpack(">I", body[at - 4 : at])[0] + len(after) - len(before)
    body = body[: at - 4] + struct.pack(">I", length) + after + body[at + len(before) :]
    return pool.written + body


def _code(instructions: bytes, max_stack: int) -> bytes:
    """What a Code attribute says after its length: max_stack, max_locals (`this`), code_length, the code."""
    return struct.pack(">HHI", max_stack, 1, len(instructions)) + instructions


def _u2(number: int) -> bytes:
    return struct.pack(">H", number)


class _Pool:
    """A class file's constant pool, to find entries in and to add them to."""

    def __init__(self, compiled: bytes) -> None:
        self._head = compiled[:8]  # magic and version
        self._entries: list[tuple[int, bytes]] = [(0, b"")]
        count = struct.unpack(">H", compiled[8:10])[0]
        at = 10
        while len(self._entries) < count:
            tag = compiled[at]
            size = 2 + struct.unpack(">H", compiled[at + 1 : at + 3])[0] if tag == _UTF8 else _SIZES[tag]
            self._entries.append((tag, compiled[at + 1 : at + 1 + size]))
            if tag in _TWO_PLACES:
                self._entries.append((0, b""))
            at += 1 + size
        self.rest = compiled[at:]

    @property
    def written(self) -> bytes:
        entries = b"".join(bytes([tag]) + content for tag, content in self._entries if tag)
        return self._head + _u2(len(self._entries)) + entries

    def add(self, tag: int, content: bytes) -> int:
        """The entry's index; one that is there already is used."""
        if (tag, content) not in self._entries:
            self._entries.append((tag, content))
        return self._entries.index((tag, content))

    def utf8(self, text: str) -> int:
        return self.add(_UTF8, _u2(len(text.encode())) + text.encode())

    def type(self, name: str) -> int:
        return self.add(_CLASS_REF, _u2(self.utf8(name)))

    def method(self, owner: str, name: str, descriptor: str) -> int:
        named = self.add(_NAME_AND_TYPE, _u2(self.utf8(name)) + _u2(self.utf8(descriptor)))
        return self.add(_METHOD_REF, _u2(self.type(owner)) + _u2(named))

"""The device's half of adb, as far as a runner needs it, so that the real adb can be talked to.

The protocol is that of Android's ``packages/modules/adb`` (protocol.txt, SYNC.TXT and shell v2):
``shell,v2`` runs the line in ``sh``, ``sync:`` takes files. One connection, without authentication.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable
from pathlib import Path

CNXN, OPEN, OKAY, CLSE, WRTE = (int.from_bytes(n.encode(), "little") for n in (
    "CNXN", "OPEN", "OKAY", "CLSE", "WRTE"))  # fmt: skip
VERSION, MOST = 0x01000001, 1 << 16
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = 0, 1, 2, 3, 4


class Stream:
    """One opened service: bytes come in by `feed`, go out by `send`, each acknowledged."""

    def __init__(self, device: Device, mine: int, theirs: int) -> None:
        self.device, self.mine, self.theirs = device, mine, theirs
        self.incoming = asyncio.StreamReader(limit=1 << 24)
        self.acknowledged = asyncio.Event()
        self.lock = asyncio.Lock()

    async def send(self, data: bytes) -> None:
        async with self.lock:
            for start in range(0, len(data), MOST):
                self.acknowledged.clear()
                chunk = data[start : start + MOST]
                await self.device.message(WRTE, self.mine, self.theirs, chunk)
                await self.acknowledged.wait()

    async def packet(self, kind: int, data: bytes) -> None:
        await self.send(struct.pack("<BI", kind, len(data)) + data)


class Device:
    """One adb server's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.streams: dict[int, Stream] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def message(self, command: int, arg0: int, arg1: int, data: bytes = b"") -> None:
        total = sum(data) & 0xFFFFFFFF
        head = struct.pack("<6I", command, arg0, arg1, len(data), total, command ^ 0xFFFFFFFF)
        self.writer.write(head + data)
        await self.writer.drain()

    async def serve(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await self.reader.readexactly(24)
                command, arg0, arg1, size, _, _ = struct.unpack("<6I", head)
                await self.handle(command, arg0, arg1, await self.reader.readexactly(size))
        self.writer.close()

    async def handle(self, command: int, arg0: int, arg1: int, data: bytes) -> None:
        if command == CNXN:
            banner = b"device::ro.product.model=scripted;features=shell_v2,cmd\0"
            await self.message(CNXN, VERSION, MOST, banner)
        elif command == OPEN:
            stream = Stream(self, len(self.streams) + 1, arg0)
            self.streams[stream.mine] = stream
            await self.message(OKAY, stream.mine, stream.theirs)
            name = data.rstrip(b"\0").decode()
            service: Callable[[Stream, str], object] = shell if name[:5] == "shell" else sync
            task = asyncio.create_task(self.run(service, stream, name))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        elif command == WRTE and arg1 in self.streams:
            self.streams[arg1].incoming.feed_data(data)
            await self.message(OKAY, arg1, arg0)
        elif command == OKAY and arg1 in self.streams:
            self.streams[arg1].acknowledged.set()
        elif command == CLSE and arg1 in self.streams:
            self.streams[arg1].incoming.feed_eof()
            self.streams[arg1].acknowledged.set()

    async def run(
        self, service: Callable[[Stream, str], object], stream: Stream, name: str
    ) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await service(stream, name)  # type: ignore[misc]
        with contextlib.suppress(ConnectionError):
            await self.message(CLSE, stream.mine, stream.theirs)


async def shell(stream: Stream, name: str) -> None:
    """``shell,v2[,options]:LINE``: stdin, stdout, stderr and the exit status in packets."""
    line = name.partition(":")[2]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", line, stdin=pipe, stdout=pipe, stderr=pipe
    )
    assert process.stdin and process.stdout and process.stderr

    async def feed() -> None:
        assert process.stdin
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                kind, size = struct.unpack("<BI", await stream.incoming.readexactly(5))
                data = await stream.incoming.readexactly(size)
                if kind == STDIN:
                    process.stdin.write(data)
                    await process.stdin.drain()
                elif kind == CLOSE_STDIN:
                    process.stdin.close()

    async def drain(source: asyncio.StreamReader, kind: int) -> None:
        while data := await source.read(1 << 15):
            await stream.packet(kind, data)

    feeding = asyncio.create_task(feed())
    await asyncio.gather(drain(process.stdout, STDOUT), drain(process.stderr, STDERR))
    code = await process.wait()
    feeding.cancel()
    await stream.packet(EXIT, bytes([code & 0xFF]))


async def sync(stream: Stream, name: str) -> None:
    """``sync:``: STAT and SEND, which is what ``adb push`` of a file asks for."""
    while True:
        kind, size = struct.unpack("<4sI", await stream.incoming.readexactly(8))
        if kind == b"QUIT":
            return
        what = (await stream.incoming.readexactly(size)).decode()
        if kind == b"STAT":
            there = Path(what).stat() if Path(what).exists() else None
            mode, length = (there.st_mode, there.st_size) if there else (0, 0)
            await stream.send(struct.pack("<4s3I", b"STAT", mode, length, 0))
        elif kind == b"SEND":
            path, _, _ = what.rpartition(",")
            with Path(path).open("wb") as file:
                while True:
                    kind, size = struct.unpack("<4sI", await stream.incoming.readexactly(8))
                    if kind == b"DONE":
                        break
                    file.write(await stream.incoming.readexactly(size))
            await stream.send(struct.pack("<4sI", b"OKAY", 0))


async def main() -> None:
    """Serves on a free port, which it prints."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Device(reader, writer).serve()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())

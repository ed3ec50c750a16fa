"""The cheapest server that refuses: reads requests of one known length, and answers 429 to each.

    python tests/benchmarks/serve_sink.py LENGTH --port 8001

`serve.py` takes from it what a flood costs the machine that carries it, whoever refuses it.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import uvloop

REFUSED = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n"
HEALTHY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_SCRATCH = memoryview(bytearray(2**18))


class Sink(asyncio.BufferedProtocol):
    """One connection."""

    def __init__(self, length: int) -> None:
        self._length = self._left = length

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return _SCRATCH

    def buffer_updated(self, nbytes: int) -> None:
        if self._left == self._length and bytes(_SCRATCH[:4]) == b"GET ":
            self._transport.write(HEALTHY)
            self._transport.close()
            return
        while nbytes >= self._left:
            nbytes -= self._left
            self._left = self._length
            self._transport.write(REFUSED)
        self._left -= nbytes


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("length", type=int, help="bytes of each request")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Sink(options.length), "127.0.0.1", options.port)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())

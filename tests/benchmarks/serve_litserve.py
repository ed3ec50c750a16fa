"""LitServe with a session of edgekit's behind it, for `serve.py`.

    python tests/benchmarks/serve_litserve.py BUNDLE ARTIFACT PORT SETTINGS

Its own way for raw bytes: what `decode_request` is annotated with is FastAPI's to read.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import Body, Response

from edgekit.runtime.bundle import Bundle

Array = np.ndarray[Any, Any]


class Api(litserve.LitAPI):
    """One model; a process of it is a worker."""

    def __init__(self, bundle: str, artifact: str, **more: Any) -> None:
        super().__init__(**more)
        self.bundle, self.artifact = bundle, artifact

    def setup(self, device: str) -> None:
        opened = Bundle.open(Path(self.bundle))
        chosen = opened.artifact(self.artifact)
        self.session = opened.session(chosen, threads=1)
        self.spec = chosen.signature.inputs[0]

    def decode_request(self, request):  # type: ignore[no-untyped-def]
        return np.frombuffer(request, self.spec.dtype).reshape(self.spec.shape)

    def predict(self, x: Array) -> dict[str, Array]:
        return self.session.run({self.spec.name: x})

    def encode_response(self, output):  # type: ignore[no-untyped-def]
        return Response(next(iter(output.values())).tobytes())


# Not in the signature, where they would be text under `from __future__ import annotations`.
Api.decode_request.__annotations__["request"] = Annotated[bytes, Body()]
Api.encode_response.__annotations__["return"] = Response


def main() -> None:
    bundle, artifact, port, settings = sys.argv[1:]
    told = json.loads(settings)
    server = litserve.LitServer(
        Api(bundle, artifact, max_batch_size=told["max_batch_size"]),
        accelerator="cpu",
        devices=1,
        workers_per_device=told["workers_per_device"],
        timeout=told["timeout"],
        fast_queue=told["fast_queue"],
    )
    server.run("127.0.0.1", int(port), log_level="error", generate_client_file=False)


if __name__ == "__main__":
    main()

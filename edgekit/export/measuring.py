"""Latency and memory of what was exported, each artifact beside its float twin."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekit import cores
from edgekit.artifact import Artifact, Store, fingerprint
from edgekit.bench.here import alone_here
from edgekit.bench.measure import BenchRequest, bench
from edgekit.errors import Locked
from edgekit.export.document import Row
from edgekit.export.request import ExportRequest
from edgekit.export.sides import Side
from edgekit.keys import code, isa
from edgekit.runtime.session import unavailable

__all__ = ["alone", "measure"]

_WAIT_SECONDS = 600.0


def measure(
    rows: Sequence[Row], sides: Mapping[str, Side], store: Store, request: ExportRequest
) -> list[Row]:
    """Latency and memory of every artifact beside its float twin, one target after the other.

    ``sides`` gives, by what an artifact takes, the sample that it is measured with.
    """
    measured = list(rows)
    usable = cores.usable()
    for target in dict.fromkeys(r.job.through for r in rows):
        mine = [i for i, r in enumerate(rows) if r.job.through == target and r.artifact is not None]
        if not mine:
            continue
        reason = unavailable(target)
        if reason is not None:
            request.listener.note(f"{target} is not measured: {reason}")
            continue
        threads = request.threads or min(usable, min(rows[i].job.threads for i in mine))
        subjects = {a.id: a for i in mine if (a := rows[i].artifact) is not None}
        for twin in (rows[i].twin for i in mine):
            if twin is not None:
                subjects.setdefault(twin.id, twin)
        document = _bench(target, list(subjects.values()), sides, threads, store, request)
        for i in mine:
            measured[i] = replace(rows[i], bench=document)
    return measured


def _bench(
    target: str,
    artifacts: Sequence[Artifact | None],
    sides: Mapping[str, Side],
    threads: int,
    store: Store,
    request: ExportRequest,
) -> dict[str, Any]:
    known = [a for a in artifacts if a is not None]
    key = fingerprint(
        stage="bench",
        artifacts=[a.digest for a in known],
        threads=threads,
        runs=request.bench_runs,
        seconds=request.bench_seconds,
        rounds=request.bench_rounds,
        code=code("bench", "runtime"),
        isa=isa(),
    )

    def fill(folder: Path) -> None:
        rounds = request.bench_rounds
        with (
            alone(request.listener.note),
            request.listener.progress(f"measuring {target}", rounds * len(known)) as advance,
        ):
            document = bench(
                [
                    BenchRequest(
                        artifact=a.id,
                        target=a.target,
                        path=a.path,
                        signature=sides[a.io].model.signature,
                        scheme=a.scheme,
                        delegate=a.delegate,
                        bytes=a.bytes,
                        feeds=sides[a.io].feeds.first(),
                    )
                    for a in known
                ],
                threads=threads,
                runs=request.bench_runs,
                max_seconds=request.bench_seconds,
                rounds=rounds,
                progress=advance,
            )
        (folder / "bench.json").write_text(json.dumps(document))

    path = store.make(key, fill, what=f"bench {target}")
    loaded: dict[str, Any] = json.loads((path / "bench.json").read_text())
    return loaded


@contextlib.contextmanager
def alone(note: Callable[[str], None]) -> Iterator[None]:
    """Waits for other measurements of this machine, but loses no export to them."""
    with contextlib.ExitStack() as stack:
        try:
            here = alone_here(_WAIT_SECONDS, waiting=note, unkept=lambda _: None)
            stack.enter_context(here)
        except Locked as error:
            note(f"{error.message} still: measured beside it")
        yield

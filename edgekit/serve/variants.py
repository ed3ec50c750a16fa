"""How one artifact is run in a worker: one sample at a time, with all threads, or in batches.

Nothing here is assumed of an artifact. Its golden samples are run one by one first, and must pass
as on a device. Another way to run it is taken only if it gives the same bits for each of them, and
is faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgekit.errors import BadData, EdgekitError, UnsupportedError
from edgekit.runtime.bundle import Bundle, BundleArtifact
from edgekit.runtime.session import Array, Session, open_batched
from edgekit.serve.layout import batched, row_signature
from edgekit.signature import Signature

__all__ = ["Variants", "Wanted", "open_variants"]

GAIN = 0.95
"""A way to run an artifact is taken if a sample takes at most this share of the time before."""

_TRIALS = 5
_TRIAL_SECONDS = 0.25


@dataclass(frozen=True)
class Wanted:
    """Which ways are to be tried.

    Attributes:
        threads: of the session that runs one sample at a time.
        wide: threads of another for a lone request; not more than ``threads`` for none.
        largest: the largest batch; 1 for none.
        known: the batches and whether wide is used, where another worker has found that out;
            None to find out.
        forced: take what gives the same bits though it is no faster.
    """

    threads: int
    wide: int
    largest: int
    known: tuple[tuple[int, ...], bool] | None = None
    forced: bool = False


@dataclass
class Variants:
    """The sessions of one artifact.

    Attributes:
        single: runs one sample.
        wide: runs one sample with all threads, or None.
        batches: by the number of samples.
        row_us: what a sample takes of its cores one by one, in microseconds, as measured now.
        notes: what was tried and not taken, and why.
    """

    single: Session
    wide: Session | None = None
    batches: dict[int, Session] = field(default_factory=dict)
    row_us: float = 0.0
    notes: list[str] = field(default_factory=list)


def open_variants(bundle: Bundle, artifact: BundleArtifact, wanted: Wanted) -> Variants:
    """Loads an artifact, warms it up, and finds out how it may be run.

    Raises:
        BadData: its golden samples give other answers here than they should.
        EdgekitError: it does not load (`Bundle.session`).
    """
    single = bundle.session(artifact, threads=wanted.threads)
    feeds = _checked(bundle, artifact, single)
    expected = [single.run(feed) for feed in feeds]
    found = Variants(single, row_us=_cost(single, feeds[0]))
    known = wanted.known
    if wanted.wide > wanted.threads and (known is None or known[1]):
        _try_wide(found, bundle, artifact, wanted, feeds, expected)
    if row_signature(artifact.signature) and wanted.largest > 1:
        _try_batches(found, bundle, artifact, wanted, feeds, expected)
    return found


def _checked(bundle: Bundle, artifact: BundleArtifact, session: Session) -> list[dict[str, Array]]:
    """Samples to compare by: the golden ones, which must pass; zeros where there are none."""
    if bundle.manifest.get("golden") is None:
        return [_zeros(session.signature)]
    check = bundle.check_golden(session)
    if not check.passed:
        worst = min(check.sqnr_db.values(), default=float("nan"))
        raise BadData(
            f"golden samples give {worst:.1f} dB against the float model, "
            f"{check.limit_db:.0f} dB are wanted"
        )
    arrays, _ = bundle.golden(artifact.io)
    rows = session.signature.inputs[0].shape[0]
    return [
        {name: np.ascontiguousarray(array[at : at + rows]) for name, array in arrays.items()}
        for at in range(0, check.n, rows)
    ]


def _zeros(signature: Signature) -> dict[str, Array]:
    return {spec.name: np.zeros(spec.shape, spec.dtype) for spec in signature.inputs}


def _try_wide(
    found: Variants,
    bundle: Bundle,
    artifact: BundleArtifact,
    wanted: Wanted,
    feeds: Sequence[dict[str, Array]],
    expected: Sequence[dict[str, Array]],
) -> None:
    wide = bundle.session(artifact, threads=wanted.wide)
    if not all(_same(wide.run(f), e) for f, e in zip(feeds, expected, strict=True)):
        found.notes.append(f"{wanted.wide} threads give other bits than {wanted.threads}: not used")
    elif wanted.known is None and not wanted.forced and not _faster(wide, found.single, feeds[0]):
        found.notes.append(f"{wanted.wide} threads are no faster for one sample: not used")
    else:
        found.wide = wide
        return
    wide.close()


def _faster(one: Session, other: Session, feed: dict[str, Array]) -> bool:
    """Whether one call of ``one`` takes less, measured in turns."""
    pairs = [(_time(one, feed), _time(other, feed)) for _ in range(3)]
    return min(a for a, _ in pairs) <= GAIN * min(b for _, b in pairs)


def _try_batches(
    found: Variants,
    bundle: Bundle,
    artifact: BundleArtifact,
    wanted: Wanted,
    feeds: Sequence[dict[str, Array]],
    expected: Sequence[dict[str, Array]],
) -> None:
    path, best, misses = bundle.place(artifact), found.row_us, 0
    for rows in _sizes(wanted):
        # One size may be no faster where the next is.
        if misses == 2:
            return
        session = _batched(found, artifact, path, rows, wanted.threads)
        if session is None:
            return
        if not _same_in_batches(session, rows, feeds, expected):
            found.notes.append(f"batches of {rows} give other bits than one by one: not used")
            session.close()
            return
        per_row = _cost(session, _stacked(feeds, 0, rows)) / rows
        fast = wanted.forced or wanted.known is not None or per_row <= GAIN * best
        if not fast:
            found.notes.append(f"batches of {rows} are no faster: not used")
            session.close()
            misses += 1
        else:
            best, misses = min(best, per_row), 0
            found.batches[rows] = session


def _sizes(wanted: Wanted) -> list[int]:
    """Powers of two, and the largest; or those that another worker found."""
    if wanted.known is not None:
        return list(wanted.known[0])
    powers = [2**i for i in range(1, wanted.largest.bit_length()) if 2**i <= wanted.largest]
    return sorted({*powers, wanted.largest})


def _batched(
    found: Variants, artifact: BundleArtifact, path: Path, rows: int, threads: int
) -> Session | None:
    signature = batched(artifact.signature, rows)
    try:
        return open_batched(artifact.target, path, signature, threads=threads)
    except (BadData, UnsupportedError):
        found.notes.append(f"{artifact.target} does not take this file in batches: one by one")
        return None


def _same_in_batches(
    session: Session,
    rows: int,
    feeds: Sequence[dict[str, Array]],
    expected: Sequence[dict[str, Array]],
) -> bool:
    """Each sample gives the same bits at several places of a batch, beside others."""
    try:
        for start in range(max(2, len(feeds))):
            got = session.run(_stacked(feeds, start, rows))
            if not _same(got, _stacked(expected, start, rows)):
                return False
    except EdgekitError:
        # A graph with its batch written into a reshape takes the shape and gives another.
        return False
    return True


def _stacked(samples: Sequence[dict[str, Array]], start: int, rows: int) -> dict[str, Array]:
    chosen = [samples[(start + i) % len(samples)] for i in range(rows)]
    return {name: np.concatenate([sample[name] for sample in chosen]) for name in samples[0]}


def _same(got: dict[str, Array], expected: dict[str, Array]) -> bool:
    return all(
        got[name].shape == value.shape and got[name].tobytes() == value.tobytes()
        for name, value in expected.items()
    )


def _cost(session: Session, feed: dict[str, Array]) -> float:
    """What a call takes of its cores, in microseconds.

    That is what tells how many calls they are good for. With one thread it is the processor's time,
    which others on the machine hardly change; with more, threads that wait for each other may spin,
    and only the clock tells.
    """
    return _least(session, feed, time.process_time if session.threads == 1 else time.perf_counter)


def _time(session: Session, feed: dict[str, Array]) -> float:
    """How long a call takes, in microseconds."""
    return _least(session, feed, time.perf_counter)


def _least(session: Session, feed: dict[str, Array], clock: Callable[[], float]) -> float:
    """The least of a few calls: others' work on the machine only adds."""
    took: list[float] = []
    session.run(feed)
    begun = time.perf_counter()
    while len(took) < _TRIALS or (len(took) < 100 and time.perf_counter() - begun < 0.02):
        start = clock()
        session.run(feed)
        took.append(clock() - start)
        if time.perf_counter() - begun > _TRIAL_SECONDS and len(took) >= 2:
            break
    return min(took) * 1e6

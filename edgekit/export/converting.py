"""Artifacts: what targets convert from a plan and what engines quantize, kept in the store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import engines
from edgekit.artifact import Artifact, Store, fingerprint, sha256_of
from edgekit.compress.plan import plan_name
from edgekit.data import Samples
from edgekit.engines import Engine
from edgekit.engines._task import TASK
from edgekit.errors import EdgekitError, WorkerCrashed
from edgekit.export.planning import Planned
from edgekit.export.request import Listener
from edgekit.keys import code, versions
from edgekit.model import Model
from edgekit.names import FLOAT_IO
from edgekit.runtime.preprocess import ImagePreprocess
from edgekit.scratch import scratch
from edgekit.signature import Signature
from edgekit.targets import Target, find, installed, worker

__all__ = [
    "About",
    "Wanted",
    "about_of",
    "convert",
    "convert_by_engine",
    "metadata",
    "placement",
    "stored",
]

Wanted = tuple[str, str | None]
"""A scheme, and the variant of its plan or None."""

About = Mapping[str, Any]
"""What an artifact can tell an app of its model: ``name``, ``licence`` and ``preprocess``."""


def about_of(model: Model, io: str = FLOAT_IO) -> About | None:
    """What artifacts of a model of pictures tell; None for other models.

    ``preprocess`` is that of the artifact's io, see `ImagePreprocess.for_io`.
    """
    if not isinstance(model.preprocess, ImagePreprocess):
        return None
    return {
        "name": model.name,
        "licence": model.license,
        "preprocess": model.preprocess.for_io(io).to_json(),
    }


def convert(
    target: str,
    wanted: Sequence[Wanted],
    planned: Planned,
    signature: Signature,
    store: Store,
    listener: Listener,
    *,
    io: str = FLOAT_IO,
    about: About | None = None,
) -> dict[Wanted, Artifact | EdgekitError]:
    """Converts for one target, in one worker process for all that is not in the store.

    Args:
        target: a target id.
        wanted: pairs of a scheme and a variant of its plan, which may be None.
        planned: the plans, those with a picture border for an io that has one.
        signature: of what is made.
        store: where artifacts are kept.
        listener: hears of progress.
        io: what the artifacts take.
        about: what they tell of the model, see `about_of`.

    Returns:
        By pair, the artifact, or the error with which the target refused it.

    Raises:
        WorkerCrashed: the converter died.
    """
    made = find(target)
    keys = {w: _convert_key(made, target, w, planned, signature, about) for w in wanted}
    missing = [w for w in wanted if store.get(keys[w]) is None]
    refused: dict[Wanted, EdgekitError] = {}
    with scratch("convert") as place:
        if missing:
            taking = "" if io == FLOAT_IO else f", which take {io}"
            listener.note(f"{target}: converting {', '.join(map(_shown, missing))}{taking}")
            refused = _run_conversions(made, target, missing, planned, signature, about, place)
        result: dict[Wanted, Artifact | EdgekitError] = {}
        for one in wanted:
            if one in refused:
                result[one] = refused[one]
                continue
            source = place / _shown(one)
            entry = store.make(
                keys[one],
                lambda folder, source=source: _copy(source, folder),  # type: ignore[misc]
                what=f"convert {target} {_shown(one)}",
            )
            result[one] = _artifact(entry, made, *one, io)
    return result


def convert_by_engine(
    engine: Engine,
    target: str,
    scheme: str,
    planned: Planned,
    calib: Samples,
    signature: Signature,
    store: Store,
    listener: Listener,
    *,
    about: About | None = None,
) -> Artifact | EdgekitError:
    """What an engine quantizes for one target, in the target's worker process.

    Returns:
        The artifact, or the error with which the engine refused the model.

    Raises:
        WorkerCrashed: the engine or the converter died.
    """
    made = find(target)
    key = fingerprint(
        stage="engine",
        engine=engine.id,
        settings=dict(engine.defaults),
        target=target,
        scheme=scheme,
        program=planned.key,
        calib=[calib.digest, len(calib)],
        signature=signature.to_json(),
        **_told(made, about),
        code=code("compress", "engines", "targets"),
        versions={
            **installed(made),
            **engines.installed(engine),
            **versions("torch", "torchao", "edgekit"),
        },
    )
    if store.get(key) is None:
        listener.note(f"{target}: {engine.id} quantizes, {scheme}")
    with scratch("engine") as place:
        folder = place / "made"

        def fill(entry: Path) -> None:
            folder.mkdir()
            out, feeds = folder / f"model{made.suffix}", place / "calib.npz"
            rows = [calib.feed(i) for i in range(len(calib))]
            arrays = {s.name: np.stack([row[s.name] for row in rows]) for s in signature.inputs}
            np.savez(feeds, **arrays)  # type: ignore[arg-type]
            task = {
                "op": TASK,
                "engine": engine.id,
                "settings": dict(engine.defaults),
                "program": str(planned.program("fp32")),
                "calib": str(feeds),
                "signature": signature.to_json(),
                "out": str(out),
            }
            after = [_describe(out, signature, about), {"op": "inspect", "artifact": str(out)}]
            done, told, seen = worker.run(target, [task, *after])
            for answer in (done, told, seen):
                if "error" in answer:
                    raise answer["error"]
            files = [Path(f).name for f in done["files"]]
            facts = {"files": files, "placement": seen["placement"], "stored": []}
            facts["metadata"] = told["metadata"]
            (folder / "convert.json").write_text(json.dumps(facts))
            _copy(folder, entry)

        try:
            entry = store.make(key, fill, what=f"convert {target} {scheme} by {engine.id}")
        except WorkerCrashed:
            raise
        except EdgekitError as error:
            return error
    return _artifact(entry, made, scheme)


def placement(artifact: Artifact) -> dict[str, Any]:
    """What the target's `inspect` found when the artifact was made."""
    found: dict[str, Any] = _facts(artifact)["placement"]
    return found


def stored(artifact: Artifact) -> list[dict[str, Any]]:
    """The quantized tensors that it holds, as the target's `stored` found them."""
    found: list[dict[str, Any]] = _facts(artifact)["stored"]
    return found


def metadata(artifact: Artifact) -> dict[str, Any] | None:
    """What it tells an app of itself, or None."""
    found: dict[str, Any] | None = _facts(artifact)["metadata"]
    return found


def _facts(artifact: Artifact) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((artifact.path.parent / "convert.json").read_text())
    return loaded


def _run_conversions(
    made: Target,
    target: str,
    wanted: Sequence[Wanted],
    planned: Planned,
    signature: Signature,
    about: About | None,
    place: Path,
) -> dict[Wanted, EdgekitError]:
    tasks: list[worker.Task] = []
    for one in wanted:
        name = plan_name(target, *one)
        folder = place / _shown(one)
        folder.mkdir()
        out = folder / f"model{made.suffix}"
        tasks.append(
            {
                "op": "convert",
                "program": str(planned.program(name)),
                "plan": str(planned.plan(name)),
                "variant": one[1],
                "signature": signature.to_json(),
                "out": str(out),
            }
        )
        tasks.append(_describe(out, signature, about))
        tasks.append({"op": "inspect", "artifact": str(out)})
        tasks.append({"op": "stored", "artifact": str(out)})
    results = worker.run(target, tasks)
    refused: dict[Wanted, EdgekitError] = {}
    for i, one in enumerate(wanted):
        answers = results[4 * i : 4 * i + 4]
        done, told, seen, stored = answers
        failed = next((r["error"] for r in answers if "error" in r), None)
        if failed is not None:
            refused[one] = failed
            continue
        facts = {
            "files": [Path(f).name for f in done["files"]],
            "placement": seen["placement"],
            "stored": stored["stored"],
            "metadata": told["metadata"],
        }
        (place / _shown(one) / "convert.json").write_text(json.dumps(facts))
    return refused


def _describe(out: Path, signature: Signature, about: About | None) -> worker.Task:
    """The task that makes an artifact tell of itself, or only asks what it tells."""
    if about is None:
        return {"op": "metadata", "artifact": str(out)}
    told = {"signature": signature.to_json(), "about": dict(about)}
    return {"op": "describe", "artifact": str(out), **told}


def _told(made: Target, about: About | None) -> dict[str, Any]:
    """The part of a key that an artifact's own description depends on."""
    return {} if about is None or not hasattr(made, "describe") else {"about": dict(about)}


def _convert_key(
    made: Target,
    target: str,
    wanted: Wanted,
    planned: Planned,
    signature: Signature,
    about: About | None,
) -> str:
    return fingerprint(
        stage="convert",
        target=target,
        scheme=_shown(wanted),
        plan=sha256_of(planned.plan(plan_name(target, *wanted))),
        program=planned.key,
        signature=signature.to_json(),
        **_told(made, about),
        code=code("compress", "targets"),
        versions={**installed(made), **versions("torch", "torchao", "edgekit")},
    )


def _artifact(
    entry: Path, made: Target, scheme: str, variant: str | None = None, io: str = FLOAT_IO
) -> Artifact:
    names = json.loads((entry / "convert.json").read_text())["files"]
    return Artifact.from_files(
        [entry / name for name in names],
        target=made.id,
        delegate=made.delegates[0],
        scheme=scheme,
        variant=variant,
        io=io,
    )


def _shown(wanted: Wanted) -> str:
    """``w8a8``, or ``w8a8@x86-no-vnni`` for a variant."""
    return "@".join(filter(None, wanted))


def _copy(source: Path, folder: Path) -> None:
    for file in source.iterdir():
        if file.is_dir():
            shutil.copytree(file, folder / file.name, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(file, folder / file.name)

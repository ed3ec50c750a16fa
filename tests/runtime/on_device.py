"""Runs a bundle as a device does: ``python on_device.py BUNDLE OUT.json``, numpy and runtimes only.

Writes which artifact this processor is given for each target and what it answers to the golden
inputs, what it refuses, and what other people's code would get from each file by itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import UnsupportedError
from edgekit.runtime import cpu
from edgekit.runtime.bundle import Bundle
from edgekit.runtime.session import Session, open_session


def answers(session: Session, feeds: dict[str, np.ndarray]) -> list[Any]:
    """What a session answers, [n, ...] as lists."""
    [name] = [spec.name for spec in session.signature.outputs]
    count = len(next(iter(feeds.values())))
    rows = [session.run({k: v[i : i + 1] for k, v in feeds.items()})[name] for i in range(count)]
    return np.concatenate(rows).tolist()


def bare(target: str, path: Path, bundle: Bundle, feeds: dict[str, np.ndarray]) -> list[Any]:
    """The file in its runtime with no settings of ours."""
    if target != "onnxruntime":
        return answers(open_session(target, path, bundle.signature), feeds)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    [name] = [i.name for i in session.get_inputs()]
    [values] = feeds.values()
    return np.concatenate([session.run(None, {name: v[None]})[0] for v in values]).tolist()


def main(source: Path, out: Path) -> None:
    """Writes ``{"lacks_vnni", "chosen", "golden", "answers", "refused", "bare"}``."""
    found: dict[str, Any] = {"lacks_vnni": cpu.lacks_vnni()}
    chosen, golden, given, refused, alone = {}, {}, {}, {}, {}
    with Bundle.open(source) as bundle:
        feeds, _ = bundle.golden()
        for target in dict.fromkeys(a.target for a in bundle.artifacts):
            artifact = bundle.artifact(target=target)
            chosen[target] = artifact.id
            session = bundle.session(artifact)
            golden[target] = bundle.check_golden(session).passed
            session.close()
        for artifact in bundle.artifacts:
            path = source / artifact.path
            alone[artifact.id] = bare(artifact.target, path, bundle, feeds)
            try:
                given[artifact.id] = answers(bundle.session(artifact), feeds)
            except UnsupportedError as error:
                refused[artifact.id] = error.message
    found |= {
        "chosen": chosen,
        "golden": golden,
        "answers": given,
        "refused": refused,
        "bare": alone,
    }
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""A process that fills and empties a spool until it kills itself. It says what it was promised.

    python spool_victim.py FOLDER SEED CHANGES

One line per promise: ``kept ID`` when append returned, ``sent ID`` when a server would have it.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from faults import KilledFiles

from edgekit.runtime.spool import Spool


def say(word: str, id: bytes) -> None:
    os.write(1, f"{word} {id.hex()}\n".encode())


def main(folder: str, seed: int, changes: int) -> None:
    rng = random.Random(seed)
    share = rng.random()
    path = Path(folder)
    spool = Spool(path, files=lambda: KilledFiles(path, changes, share))
    for _ in range(400):
        stream = rng.choice(["event", "metric", "metric"])
        if rng.random() < 0.7:
            say("kept", spool.append(stream, rng.randbytes(rng.randint(1, 6000))))
            continue
        batch = spool.take(stream, records=rng.randint(1, 20))
        for record in batch:
            say("sent", record.id)
        spool.settle(stream, [record.seq for record in batch])
    spool.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

"""How long `edgekit --help` takes beside `import click`, in turn, in fresh processes.

The limit is twice. A command line that imports torch to print its help takes over a second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from edgekit import __version__
from edgekit.doctor import machine_facts
from edgekit.paired import paired_ratio

LIMIT = 2.0
COMMANDS = {
    "import_click": [sys.executable, "-c", "import click"],
    "edgekit_help": [
        sys.executable,
        "-c",
        "import sys; from edgekit.cli.main import main; sys.exit(main(['--help']))",
    ],
}


def main() -> int:
    """Measures, writes the JSON, and returns 1 if the limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    # The first round fills the page cache and is dropped.
    for _ in range(options.rounds + 1):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            seconds[name].append(time.perf_counter() - start)
    base, ours = (times[1:] for times in seconds.values())
    ratio = paired_ratio(base, ours)
    passed = ratio.high <= LIMIT
    report = {
        "benchmark": "startup",
        "edgekit": __version__,
        "facts": machine_facts(),
        "ms_p50": {name: 1e3 * statistics.median(times[1:]) for name, times in seconds.items()},
        "ratio": ratio.ratio,
        "ratio_ci95": [ratio.low, ratio.high],
        "n": ratio.n,
        "limit": LIMIT,
        "passed": passed,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2, sort_keys=True, allow_nan=False) + "\n")
    print(
        f"edgekit --help takes {ratio.ratio:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) import click"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

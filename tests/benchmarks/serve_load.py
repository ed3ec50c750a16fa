"""The load generator of `serve.py`: `edgekit.serve.load` in a process of its own.

    python tests/benchmarks/serve_load.py PORT REQUEST --closed 16 --seconds 5
    python tests/benchmarks/serve_load.py PORT REQUEST --open 800 --seconds 5

REQUEST is a file with the bytes of one HTTP/1.1 request. One JSON document goes to stdout:
latencies by status in ms, requests without an answer, and how late the generator itself was.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from edgekit.serve.load import CONNECTIONS, Address, Plan, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("port", type=int)
    parser.add_argument("request", type=Path)
    parser.add_argument("--closed", type=int, metavar="CONCURRENCY")
    parser.add_argument("--open", type=float, metavar="PER_SECOND")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rate = None if options.closed else options.open
    plan = Plan(options.seconds, rate, options.closed or CONNECTIONS, options.seed)
    found = run(Address("127.0.0.1", options.port), options.request.read_bytes(), plan)
    json.dump(asdict(found), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""An adb for tests: its device is this machine's shell, and faults come from a file.

``$FAKE_ADB`` is a folder: ``argv`` gets one JSON line per call; ``fault`` may hold ``WHAT@N``,
which happens at the Nth call and at all after it, as an unplugged cable would; a hang, once.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(os.environ["FAKE_ADB"])
STATES = ("offline", "unauthorized")


def fail(text: str, code: int = 1) -> None:
    sys.stderr.write(text + "\n")
    sys.exit(code)


def fault() -> str:
    """What goes wrong with this call."""
    count = FOLDER / "count"
    number = int(count.read_text()) + 1 if count.exists() else 1
    count.write_text(str(number))
    if not (FOLDER / "fault").exists():
        return ""
    what, _, first = (FOLDER / "fault").read_text().strip().partition("@")
    once = what == "hang"
    return what if number == int(first) or (number > int(first) and not once) else ""


def main() -> None:
    with (FOLDER / "argv").open("a") as log:
        log.write(json.dumps(sys.argv[1:]) + "\n")
    option, serial, verb, *rest = sys.argv[1:]
    assert option == "-s"
    wrong = fault()
    if serial != "PHONE1" or wrong == "gone":
        fail(f"error: device '{serial}' not found")
    if wrong in STATES:
        fail(f"error: device {wrong}.")
    if verb == "get-state":
        print("device")
    elif verb == "push":
        local, remote = rest
        if wrong == "full":
            fail("adb: error: failed to copy: remote couldn't write: No space left on device")
        shutil.copyfile(local, remote)
        if wrong == "spoil":
            Path(remote).write_bytes(b"spoilt")
        if wrong == "silent-push":
            Path(remote).unlink()  # says that all is well
    elif verb == "shell":
        shell(" ".join(rest), wrong)
    else:
        fail(f"unknown command {verb}")


def shell(line: str, wrong: str) -> None:
    if wrong == "hang":
        time.sleep(600)
    done = subprocess.run(["sh", "-c", line], stdin=sys.stdin, stdout=subprocess.PIPE, check=False)
    out = done.stdout
    if wrong == "unplug":  # in the middle of the output
        sys.stdout.buffer.write(out[: len(out) // 2])
        sys.stdout.flush()
        fail("error: device 'PHONE1' not found")
    if wrong == "reboot":
        sys.exit(255)
    if wrong == "server":
        fail("adb: error: closed\n* daemon not running; starting now at tcp:5037")
    sys.stdout.buffer.write(out)
    sys.exit(0 if wrong == "no-status" else done.returncode)


if __name__ == "__main__":
    main()

"""``adb://SERIAL``: an Android device, through the system's own adb."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from edgekit.bench.process import Finished, attempt
from edgekit.bench.runners.quoting import quote
from edgekit.bench.runners.url import DeviceUrl
from edgekit.errors import DeviceUnreachable, EdgekitError, MissingDependency

__all__ = ["AdbLink"]

_FOLDER = "/data/local/tmp"  # where the shell user may write and run programs
_STATE_TIMEOUT = 20.0
_STATES = {
    "unauthorized": "unlock it and allow this computer's key, which it asks about",
    "offline": "plug it in again, or: adb reconnect offline",
    "recovery": "it is in recovery mode; reboot it",
    "sideload": "it is in sideload mode; reboot it",
    "bootloader": "it is in its bootloader; reboot it",
    "authorizing": "it is still asking; unlock it and allow this computer's key",
    "no permissions": "this user may not open the USB device; see its udev rules",
}


class AdbLink:
    """A link through ``adb -s SERIAL``. It never restarts adb's server: others may be using it."""

    def __init__(self, url: DeviceUrl) -> None:
        self.url, self.folder = url.text, url.folder or _FOLDER
        program = shutil.which("adb")
        if program is None:
            raise MissingDependency("adb is not installed", hint="apt-get install -y adb")
        self._argv = [program, "-s", url.host]
        # The same serial behind another computer's server is another device.
        server = os.environ.get("ADB_SERVER_SOCKET") or ":".join(
            os.environ.get(f"ANDROID_ADB_SERVER_{name}", usual)
            for name, usual in (("ADDRESS", "localhost"), ("PORT", "5037"))
        )
        self.identity = f"adb {server} {url.host}"

    def _check_state(self) -> None:
        done = attempt([*self._argv, "get-state"], timeout=_STATE_TIMEOUT)
        said = f"{done.stdout.decode('utf-8', 'replace')} {done.stderr}".strip()
        if done.stopped:
            raise DeviceUnreachable(
                f"{self.url}: timeout:open: adb did not say its state within {_STATE_TIMEOUT:.0f} s"
            )
        if done.code != 0 or done.stdout.strip() != b"device":
            raise self._not_ready(said)

    def _not_ready(self, said: str) -> DeviceUnreachable:
        last = said.splitlines()[-1].strip()[:300] if said else "adb says nothing"
        for state, remedy in _STATES.items():
            if state in said:
                return DeviceUnreachable(f"{self.url}: the device is {state}", hint=remedy)
        return DeviceUnreachable(f"{self.url}: {last}", hint="which are there: adb devices -l")

    def command(self, script: str, words: Sequence[str], step: str) -> list[str]:
        """See `edgekit.bench.runners.shell.Link.command`."""
        if step == "open":
            self._check_state()
        line = " ".join(quote(word) for word in ("sh", "-c", script, "sh", *words))
        return [*self._argv, "shell", line]

    def broken(self, done: Finished) -> EdgekitError:
        """See `edgekit.bench.runners.shell.Link.broken`."""
        return self._not_ready(done.stderr.strip() or "the link broke; adb says nothing")

    def transfer(self, local: Path, remote: str) -> list[str] | None:
        """See `edgekit.bench.runners.shell.Link.transfer`."""
        return [*self._argv, "push", str(local), remote]

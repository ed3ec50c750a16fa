"""Keeps vendors' libraries from reporting how they are used.

OpenVINO's wheel brings ``openvino_telemetry``, which sends an event to its makers for each import
and each conversion, in a process that it forks, unless somebody opted out on that machine. NNCF
uses it too. Whether to report is the user's decision, not that of a library they never called.
"""

from __future__ import annotations

import sys

_REPORTERS = ("openvino_telemetry",)


def silence() -> None:
    """Makes the packages that report look as if they were not installed, as their users allow for.

    To be called before the vendor's own import; what was imported before stays as it is.
    """
    for name in _REPORTERS:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]

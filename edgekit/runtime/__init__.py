"""The device side: what runs on a phone-class computer, a Raspberry Pi or a server.

It needs numpy beside the runtime's own wheel, never torch. Names are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.runtime.bundle import Bundle as Bundle
    from edgekit.runtime.cloud import Cloud as Cloud
    from edgekit.runtime.policy import Policy as Policy
    from edgekit.runtime.privacy import LocalPrivacy as LocalPrivacy
    from edgekit.runtime.recorder import Recorder as Recorder
    from edgekit.runtime.router import Router as Router
    from edgekit.runtime.session import Session as Session
    from edgekit.runtime.session import open_session as open_session
    from edgekit.runtime.session import read_signature as read_signature

_HOMES = {
    "Bundle": "edgekit.runtime.bundle",
    "Cloud": "edgekit.runtime.cloud",
    "LocalPrivacy": "edgekit.runtime.privacy",
    "Policy": "edgekit.runtime.policy",
    "Recorder": "edgekit.runtime.recorder",
    "Router": "edgekit.runtime.router",
    "Session": "edgekit.runtime.session",
    "open_session": "edgekit.runtime.session",
    "read_signature": "edgekit.runtime.session",
}

__all__ = [
    "Bundle",
    "Cloud",
    "LocalPrivacy",
    "Policy",
    "Recorder",
    "Router",
    "Session",
    "open_session",
    "read_signature",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

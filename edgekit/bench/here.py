"""This machine as a device that one measures on alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from edgekit.bench.leases import lease
from edgekit.bench.runners import device_identity
from edgekit.errors import StorageError

__all__ = ["alone_here"]


@contextlib.contextmanager
def alone_here(
    wait: float, *, waiting: Callable[[str], None], unkept: Callable[[str], None]
) -> Iterator[None]:
    """Has this machine for oneself, as any other device.

    Args:
        wait: seconds to wait for who measures on it.
        waiting: called once with who has it.
        unkept: called with the reason where a lease can't be kept; one measures all the same.

    Raises:
        Locked: another still had it after ``wait`` seconds.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(
                lease(device_identity("local:"), what="this machine", wait=wait, waiting=waiting)
            )
        except StorageError as error:
            unkept(f"another measurement may run beside this one: {error.message}")
        yield

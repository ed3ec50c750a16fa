"""`edgekit serve --engine ray`: deploys the application, and stays until it is told to end."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import ray
from ray import serve

from edgekit import cores
from edgekit.errors import BadData, EdgekitError, StorageError, UsageError
from edgekit.runtime.bundle import Bundle
from edgekit.serve.choice import choose
from edgekit.serve.ray_app import RayArgs, build
from edgekit.serve.teacher import teacher_of

__all__ = ["APPLICATION", "Listening", "run"]

log = logging.getLogger("edgekit.serve")

APPLICATION = "edgekit"
"""Name of the application in Ray Serve."""

_POLL_S = 0.2


@dataclass(frozen=True)
class Listening:
    """Where Ray Serve's proxy listens.

    Attributes:
        host, port: port 0 takes a free one.
        certificate, key: PEM files for TLS, or None.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: Path | None = None
    key: Path | None = None


def run(
    args: RayArgs, where: Listening, deployed: Callable[[RayArgs, int], None]
) -> Literal["ended", "forced"]:
    """Deploys an application and stays until SIGTERM or SIGINT, which let finish what is going on.

    SIGHUP reads the bundles again: replicas of what lies there now start, and take the place of the
    old ones when they are warm; where they do not start, the old ones stay. Ray is started on this
    machine, for as long as this runs, unless ``RAY_ADDRESS`` says where it is.

    Args:
        args: without digests; they are put in here.
        where: of the proxy.
        deployed: called once requests are answered, with the digests and the port.

    Returns:
        ``forced`` after a second signal.

    Raises:
        EdgekitError: the bundles cannot be served, or the port is taken.
    """
    pinned = _pinned(args)
    application = build(pinned)
    port = _port(where)
    ours = not os.environ.get("RAY_ADDRESS")
    _connect(pinned, ours)
    try:
        _listen(where, port)
        with _signals() as signals:
            if _deploy(application, signals):
                deployed(pinned, port)
                while signals.get() == signal.SIGHUP:
                    if not _deploy_again(args, signals):
                        break
            serve.delete(APPLICATION)
            if ours:
                serve.shutdown()
    except _Forced:
        return "forced"
    finally:
        ray.shutdown()
    return "ended"


def _pinned(args: RayArgs) -> RayArgs:
    """With the digest of each bundle as it lies there."""
    models = []
    for model in args.models:
        if model.student is not None:
            teacher_of(Path(model.student))
        with Bundle.open(model.path) as bundle:
            choose(bundle, model.artifact)
            found = {"digest": bundle.digest, "name": model.name or bundle.name}
        models.append(model.model_copy(update=found))
    names = [str(model.name) for model in models]
    if len(set(names)) != len(names):
        raise UsageError(
            f"two models have one name: {', '.join(names)}", hint="give another: NAME=BUNDLE"
        )
    return args.model_copy(update={"models": tuple(models)})


def _port(where: Listening) -> int:
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    with socket.socket(family) as probe:
        # As Ray's proxy does: a port that only lingers is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((where.host, where.port))
        except OSError as error:
            raise StorageError(
                f"cannot listen on {where.host}:{where.port}: {error.strerror}",
                hint="choose another --port, or 0 for a free one",
            ) from error
        return int(probe.getsockname()[1])


def _connect(args: RayArgs, ours: bool) -> None:
    quiet: dict[str, Any] = {"include_dashboard": False} if ours else {}
    if ours:
        # Cores are what replicas reserve, not what they are held to: as many as were asked for.
        quiet |= {"num_cpus": max(cores.usable(), args.reserved_cores)}
        quiet |= {"_node_ip_address": "127.0.0.1"}
    address = "local" if ours else os.environ["RAY_ADDRESS"]
    try:
        ray.init(address=address, logging_level=logging.WARNING, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BadData(f"Ray at {address!r} cannot be used: {error}") from error


def _listen(where: Listening, port: int) -> None:
    options: dict[str, Any] = {"host": where.host, "port": port}
    if where.certificate is not None:
        options |= {"ssl_certfile": str(where.certificate), "ssl_keyfile": str(where.key)}
    # The default is a line in the log for every request.
    serve.start(http_options=options, logging_config={"enable_access_log": False})


def _deploy(application: Any, signals: queue.SimpleQueue[int]) -> bool:
    """Waits until all replicas are new; False if it was told to end before.

    Raises:
        BadData: the replicas do not start; those from before stay.
    """
    target = serve.RunTarget(
        application,
        name=APPLICATION,
        route_prefix="/",
        logging_config={"enable_access_log": False},
    )
    serve.run_many([target], wait_for_applications_running=False)
    again = False
    while True:
        with contextlib.suppress(queue.Empty):
            if signals.get(timeout=_POLL_S) != signal.SIGHUP:
                return False
            again = True
        found = serve.status().applications[APPLICATION]
        if found.status == "DEPLOY_FAILED":
            raise BadData(f"no replica starts: {found.message.strip()}")
        if found.status == "RUNNING":
            if again:
                signals.put(signal.SIGHUP)
            return True


def _deploy_again(args: RayArgs, signals: queue.SimpleQueue[int]) -> bool:
    """Reads the bundles again; False if it was told to end before all replicas are new."""
    try:
        pinned = _pinned(args)
        if not _deploy(build(pinned), signals):
            return False
    except EdgekitError as error:
        log.error("what is served stays as it was", extra={"reason": str(error)})
        return True
    digests = {model.name: model.digest for model in pinned.models}
    log.info("another version is served", extra={"digests": digests})
    return True


class _Forced(Exception):
    """A second signal came."""


@contextlib.contextmanager
def _signals() -> Iterator[queue.SimpleQueue[int]]:
    """SIGHUP, SIGTERM and SIGINT as they come. After one of the last two another one raises."""
    found: queue.SimpleQueue[int] = queue.SimpleQueue()
    ending = False

    def came(number: int, _frame: FrameType | None) -> None:
        nonlocal ending
        if ending and number != signal.SIGHUP:
            raise _Forced
        ending = ending or number != signal.SIGHUP
        found.put(number)

    before = {n: signal.signal(n, came) for n in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

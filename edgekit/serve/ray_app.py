"""The handler as a deployment of Ray Serve: replicas, autoscaling, rolling updates.

A replica is a process of Ray's with the same `Handler` in it as the server in one process, so one
protocol, queue and refusals; Ray Serve's proxy stands in front of it. `build` is what a Serve
config file names (``import_path: edgekit.serve.ray_app:build``), and what `edgekit.serve.ray_run`
deploys. This module imports Ray only where it is used.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from edgekit.errors import BadData, UsageError
from edgekit.serve.asgi import Application, Receive, Scope, Send
from edgekit.serve.engine import EngineSettings
from edgekit.serve.handler import Handler
from edgekit.serve.hosted import Hosted
from edgekit.serve.logs import set_up
from edgekit.serve.openapi import description
from edgekit.serve.security import Keys, Rates, read_keys

__all__ = ["ModelArgs", "RayArgs", "Replica", "autoscaling", "build"]

log = logging.getLogger("edgekit.serve")

_ONGOING = 4096
"""Requests that Ray hands a replica at once: so many that the replica's own queue refuses first,
with 429, where Ray's would keep requests waiting without bound."""

_SURGE_PERCENT = 25
"""So many more replicas there may be while one version takes another's place, one at least: the new
ones start before the old ones end, and if they do not start the old ones stay."""

_HEALTH_PERIOD_S, _HEALTH_TIMEOUT_S = 5.0, 30.0


class ModelArgs(BaseModel):
    """One model of an application.

    Attributes:
        path: of its bundle; the same on every node.
        name: under which it is served; None for the bundle's own.
        artifact: id of the artifact, or None to choose.
        student: the bundle of the pair that it belongs to, or None.
        digest: of the bundle, which a replica holds it to; another digest makes another version of
            the deployment, and so a rolling update. None takes what lies there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    artifact: str | None = None
    student: str | None = None
    digest: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class RayArgs(BaseModel):
    """What an application is made of: the ``args`` of a Serve config file.

    Attributes:
        models: at least one.
        replicas: how many; with ``min_replicas`` and ``max_replicas`` as many as the load asks for.
        workers, threads: of each replica; it reserves so many cores as the two multiplied.
        batch, delay_ms, queue, objective_ms: see `EngineSettings`.
        timeout_ms: the longest that a request waits.
        max_body_mb: the largest body, in MiB.
        keys: file of API keys, the same on every node; they let nobody load models, because that
            would reach one replica only.
        rate: requests per second for each key or address, in each replica.
        grace_s: how long a replica that is to end may take for what it has begun.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[ModelArgs, ...] = Field(min_length=1)
    replicas: int = Field(default=1, ge=1, le=10_000)
    min_replicas: int | None = Field(default=None, ge=1, le=10_000)
    max_replicas: int | None = Field(default=None, ge=1, le=10_000)
    workers: int = Field(default=1, ge=1, le=256)
    threads: int = Field(default=1, ge=1, le=256)
    batch: int | None = Field(default=None, ge=1, le=256)
    delay_ms: float = Field(default=0.0, ge=0, le=1000)
    queue: int | None = Field(default=None, ge=1, le=100_000)
    objective_ms: float = Field(default=100.0, ge=1)
    timeout_ms: float = Field(default=30_000.0, ge=1, le=3_600_000)
    max_body_mb: float = Field(default=32.0, ge=0.001, le=1024)
    keys: str | None = None
    rate: float = Field(default=0.0, ge=0)
    grace_s: float = Field(default=30.0, ge=0, le=3600)

    @property
    def most_replicas(self) -> int:
        """How many there may be at once."""
        return self.max_replicas or max(self.replicas, self.min_replicas or 1)

    @property
    def reserved_cores(self) -> int:
        """Cores of all replicas, also while a version takes another's place."""
        most = self.most_replicas
        return (most + math.ceil(most * _SURGE_PERCENT / 100)) * self.workers * self.threads

    @property
    def max_body(self) -> int:
        """Bytes of a body."""
        return int(self.max_body_mb * 2**20)

    def handler(self) -> Handler:
        """A handler for these models, none of them loaded yet."""
        settings = EngineSettings(
            workers=self.workers,
            threads=self.threads,
            # The other cores are other replicas'.
            wide=self.threads,
            batch=self.batch,
            delay_ms=self.delay_ms,
            queue=self.queue,
            objective_ms=self.objective_ms,
            raw_bytes=min(16 * 2**20, self.max_body),
        )
        models = [Hosted(Path(m.path), m.artifact, settings, m.name) for m in self.models]
        return Handler(
            models, keys=self._keys(), rates=Rates(self.rate), timeout_ms=self.timeout_ms
        )

    def _keys(self) -> Keys:
        if self.keys is None:
            return Keys()
        found = read_keys(Path(self.keys)).callers
        return Keys(tuple((digest, replace(caller, admin=False)) for digest, caller in found))


class _Answer(Response):
    """Ray sends a `Response` by calling it, as any ASGI server would; so the answer is an
    application's, with its limits on the body."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._application(scope, receive, send)


class Replica:
    """One replica: a handler with its models and their worker processes.

    Args:
        args: as JSON gives them.

    Raises:
        EdgekitError: a model cannot be served here; Ray keeps what was served before.
    """

    # Ray awaits it, and sends the replica requests only then.
    async def __init__(self, args: Mapping[str, Any]) -> None:  # type: ignore[misc]
        set_up(logging.INFO)
        wanted = RayArgs.model_validate(args)
        self._handler = wanted.handler()
        self._application = Application(self._handler, description(self._handler), wanted.max_body)
        try:
            for model, given in zip(self._handler.models.values(), wanted.models, strict=True):
                version = await model.load()
                if given.digest not in (None, version.digest):
                    raise BadData(
                        f"the bundle {given.path} has the digest {version.digest}, not "
                        f"{given.digest}",
                        hint="deploy again, with the digest of what lies there now",
                    )
        except BaseException:
            await self._close()
            raise

    async def __call__(self, request: Request) -> Response:
        """Answers a request."""
        return _Answer(self._application)

    def check_health(self) -> None:
        """Asked by Ray every few seconds; three errors in a row have the replica replaced.

        Raises:
            RuntimeError: a model takes no requests, for its workers die again and again.
        """
        if not self._handler.ready:
            names = [m.name for m in self._handler.models.values() if not m.ready]
            raise RuntimeError(f"not ready: {', '.join(names)}")

    async def __del__(self) -> None:
        # Called by Ray when all is answered that the replica had been given.
        await self._close()

    async def _close(self) -> None:
        self._handler.draining = True
        for model in self._handler.models.values():
            await model.close()


def build(args: RayArgs | Mapping[str, Any]) -> Any:
    """The application, for Ray Serve to deploy; named by ``import_path`` in a Serve config file.

    Args:
        args: the file's ``args`` come as they stand there.

    Raises:
        UsageError: fixed and automatic numbers of replicas are mixed, or least is over most.
        ValueError: an argument is none of `RayArgs`.
    """
    from ray import serve

    if not isinstance(args, RayArgs):
        args = RayArgs.model_validate(args)
    options: dict[str, Any] = {
        "name": "replica",
        "max_ongoing_requests": _ONGOING,
        "max_surge_percent": _SURGE_PERCENT,
        "max_constructor_retry_count": 3,
        "ray_actor_options": {"num_cpus": args.workers * args.threads},
        "graceful_shutdown_timeout_s": args.grace_s,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": _HEALTH_PERIOD_S,
        "health_check_timeout_s": _HEALTH_TIMEOUT_S,
    }
    scaling = autoscaling(args)
    if scaling is None:
        options["num_replicas"] = args.replicas
    else:
        options["autoscaling_config"] = scaling
    return serve.deployment(**options)(Replica).bind(args.model_dump(mode="json"))


def autoscaling(args: RayArgs) -> dict[str, Any] | None:
    """Ray's ``autoscaling_config``, or None for a fixed number of replicas.

    Two requests for each worker, one that is executed and one that is next, keep it busy; more of
    them ask for more replicas.

    Raises:
        UsageError: see `build`.
    """
    if args.min_replicas is None and args.max_replicas is None:
        return None
    if args.replicas != 1:
        raise UsageError("a fixed number of replicas goes without a least and a most")
    least, most = args.min_replicas or 1, args.max_replicas or args.min_replicas or 1
    if least > most:
        raise UsageError(f"at least {least} replicas are more than at most {most}")
    return {
        "min_replicas": least,
        "max_replicas": most,
        "target_ongoing_requests": 2 * args.workers,
        "upscale_delay_s": 5.0,
        "downscale_delay_s": 60.0,
    }

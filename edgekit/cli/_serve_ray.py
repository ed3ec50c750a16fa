"""`edgekit serve --engine ray`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgekit import cores
from edgekit.cli._listening import url_of
from edgekit.cli._output import emit, note
from edgekit.errors import MissingDependency, UsageError
from edgekit.names import install_command

if TYPE_CHECKING:
    from edgekit.serve.teacher import Listed

__all__ = ["RAY_ONLY", "run_on_ray"]

RAY_ONLY = ("replicas", "min_replicas", "max_replicas")
"""Options that only Ray has."""

_NOT_ON_RAY = {
    "client_ca": "Ray Serve's proxy does not insist on clients' certificates",
    "header_timeout_s": "Ray Serve's proxy reads the requests",
    "body_timeout_s": "Ray Serve's proxy reads the requests",
    "connections": "Ray Serve's proxy takes the connections",
    "linger_s": "Ray Serve takes an application's route away at once",
}


def run_on_ray(bundles: list[Listed], options: dict[str, Any], as_json: bool) -> int:
    """Deploys bundles on Ray Serve until a signal ends it.

    Args:
        bundles: what is served.
        options: of `edgekit serve`.
        as_json: whether the document is printed as JSON.

    Returns:
        The exit code.

    Raises:
        UsageError: an option has no meaning there.
        MissingDependency: Ray is not installed.
    """
    _refuse_options()
    # Before Ray is imported; who sets it otherwise has it so.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import edgekit.serve.ray_run as ray_run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("edgekit"):
            raise
        extra = "ray" if error.name.partition(".")[0] == "ray" else "serve"
        message = f"{error.name} is not installed"
        raise MissingDependency(message, hint=install_command(extra)) from error
    args = _args(bundles, options)

    def deployed(pinned: Any, port: int) -> None:
        document = _document(pinned, options, port)
        emit(document, as_json, lambda: _text(document))

    where = ray_run.Listening(
        options["host"], options["port"], options["certificate"], options["certificate_key"]
    )
    note("starting Ray, which takes some seconds")
    return 130 if ray_run.run(args, where, deployed) == "forced" else 0


def _refuse_options() -> None:
    context = click.get_current_context()
    for name, why in _NOT_ON_RAY.items():
        if context.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} has no meaning with --engine ray: {why}")


def _args(bundles: list[Listed], options: dict[str, Any]) -> Any:
    from edgekit.serve.ray_app import ModelArgs, RayArgs

    workers, threads = options["workers"] or 1, options["threads"]
    scaled = any(options[name] is not None for name in RAY_ONLY)
    here = 1 if scaled or os.environ.get("RAY_ADDRESS") else cores.usable() // (workers * threads)
    if (options["certificate"] is None) != (options["certificate_key"] is None):
        raise UsageError("a certificate and its key go together")
    names = ("batch", "delay_ms", "queue", "objective_ms", "timeout_ms", "max_body_mb", "rate")
    return RayArgs(
        models=tuple(
            ModelArgs(
                path=str(m.path.absolute()),
                name=m.name,
                artifact=m.artifact,
                student=None if m.student is None else str(m.student.absolute()),
            )
            for m in bundles
        ),
        replicas=options["replicas"] or max(1, here),
        min_replicas=options["min_replicas"],
        max_replicas=options["max_replicas"],
        workers=workers,
        threads=threads,
        keys=None if options["keys"] is None else str(options["keys"].absolute()),
        grace_s=options["grace_s"],
        **{name: options[name] for name in names},
    )


def _document(pinned: Any, options: dict[str, Any], port: int) -> dict[str, Any]:
    from edgekit.runtime.bundle import Bundle

    models = []
    for model in pinned.models:
        with Bundle.open(model.path) as bundle:
            version = bundle.version
        entry = {"name": model.name, "version": version, "digest": model.digest}
        models.append({**entry, "state": "ready", "reason": ""})
    most = pinned.most_replicas
    fixed = pinned.min_replicas is None and pinned.max_replicas is None
    return {
        "schema": "edgekit.serve/1",
        "engine": "ray",
        "replicas": {"least": most if fixed else pinned.min_replicas or 1, "most": most},
        "url": url_of(options, port),
        "models": models,
    }


def _text(document: dict[str, Any]) -> str:
    least, most = document["replicas"]["least"], document["replicas"]["most"]
    replicas = f"{least}" if least == most else f"{least} to {most}"
    lines = [f"{document['url']}  on Ray Serve, replicas: {replicas}  (Ctrl-C ends)"]
    lines += [f"{model['name']} {model['version']}" for model in document["models"]]
    return "\n".join(lines)

"""Ray Serve: a config file for ``serve run`` and ``serve deploy``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import edgekit
from edgekit.runtime.bundle import Bundle
from edgekit.serve.deploy._yaml import to_yaml
from edgekit.serve.deploy.facts import Facts, Made, Wishes

__all__ = ["made"]

FILE = "serve_config.yaml"


def made(facts: Facts, wishes: Wishes) -> Made:
    """``serve_config.yaml``, which names the bundles where they lie now."""
    models = [_model(facts.path, facts.name, facts.artifact.id, facts.digest)]
    if facts.teacher is not None:
        teacher = facts.teacher
        with Bundle.open(teacher.path) as opened:
            models.append(_model(teacher.path, teacher.name, teacher.artifact, opened.digest))
    # `edgekit.serve.ray_app.RayArgs`
    args: dict[str, Any] = {"models": models}
    if wishes.min_replicas == wishes.max_replicas:
        args["replicas"] = wishes.min_replicas
    else:
        args |= {"min_replicas": wishes.min_replicas, "max_replicas": wishes.max_replicas}
    comment = (
        f"Model {facts.name!r}, version {facts.version}, bundle {facts.digest}.\n"
        f"Written by edgekit {edgekit.__version__}. Every node needs edgekit[ray], the runtime,\n"
        "and the bundle under the same path. Another bundle has another digest: export it again,\n"
        "and deploy that to have its replicas take the place of these.\n"
        f"RAY_USAGE_STATS_ENABLED=0 serve run {FILE}"
    )
    document: dict[str, Any] = {
        "proxy_location": "EveryNode",
        "http_options": {"host": wishes.host, "port": wishes.port},
        "logging_config": {"encoding": "JSON", "enable_access_log": False},
        "applications": [
            {
                "name": "edgekit",
                "route_prefix": "/",
                "import_path": "edgekit.serve.ray_app:build",
                "args": args,
            }
        ],
    }
    notes = (
        f"RAY_USAGE_STATS_ENABLED=0 serve run {FILE}, or serve deploy on a cluster",
        f"every node needs the bundle at {facts.path}",
    )
    return Made({FILE: to_yaml(document, comment=comment)}, notes)


def _model(path: Path, name: str, artifact: str, digest: str) -> dict[str, str]:
    return {"path": str(path), "name": name, "artifact": artifact, "digest": digest}

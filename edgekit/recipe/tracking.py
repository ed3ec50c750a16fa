"""A run told to MLflow: settings, curves, gates and lineage, where the user asks for it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from edgekit.errors import MissingDependency, StorageError, UsageError
from edgekit.names import install_command
from edgekit.recipe.document import DOCUMENT

__all__ = ["check", "record"]

_BATCH: Final = 100
_SCHEMES: Final = ("sqlite://", "http://", "https://", "postgresql", "mysql", "mssql")


def check(uri: str) -> None:
    """Refuses, before a run, a place that MLflow can't record to.

    Raises:
        UsageError: MLflow keeps no runs there; its file store is no longer written to.
        MissingDependency: MLflow is not installed.
    """
    if not uri.startswith(_SCHEMES):
        raise UsageError(
            f"--track {uri!r} is no place that MLflow records to",
            hint="sqlite:///FILE, or the http:// address of a server",
        )
    _mlflow()


def record(document: Mapping[str, Any], out: Path, uri: str) -> str:
    """Writes one run to MLflow; nothing leaves this machine but to ``uri``.

    Args:
        document: ``edgekit.run/1``.
        out: the run's folder, whose ``run.json`` is attached.
        uri: see `check`.

    Returns:
        MLflow's id of the run.

    Raises:
        UsageError, MissingDependency: see `check`.
        StorageError: ``uri`` does not take it.
    """
    check(uri)
    mlflow = _mlflow()
    try:
        return _record(mlflow.MlflowClient(tracking_uri=uri), document, out, uri)
    except mlflow.exceptions.MlflowException as error:
        raise StorageError(
            f"MLflow did not record the run at {uri}: {error}",
            hint=f"the run itself is whole, in {out / DOCUMENT}",
        ) from error


def _record(client: Any, document: Mapping[str, Any], out: Path, uri: str) -> str:
    name = document["recipe"]["name"]
    known = client.get_experiment_by_name(name)
    artifacts = (out / "mlflow").absolute().as_uri() if uri.startswith("sqlite") else None
    experiment = (
        client.create_experiment(name, artifact_location=artifacts)
        if known is None
        else known.experiment_id
    )
    failed = any(s["status"] == "failed" for s in document["stages"])
    run = client.create_run(experiment, tags=_tags(document)).info.run_id
    from mlflow.entities import Metric, Param

    params = [Param(k, json.dumps(v)) for k, v in document["settings"].items()]
    metrics = [Metric(k, v, 0, step) for k, v, step in _metrics(document)]
    for start in range(0, len(params), _BATCH):
        client.log_batch(run, params=params[start : start + _BATCH])
    for start in range(0, len(metrics), _BATCH):
        client.log_batch(run, metrics=metrics[start : start + _BATCH])
    if (out / DOCUMENT).is_file():
        client.log_artifact(run, str(out / DOCUMENT))
    client.set_terminated(run, "FAILED" if failed else "FINISHED")
    return str(run)


def _mlflow() -> Any:
    # It would tell its makers of its use, and we promise that nothing is told.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        import mlflow
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"--track needs {error.name}", hint=install_command("mlflow")
        ) from error
    return mlflow


def _tags(document: Mapping[str, Any]) -> dict[str, str]:
    data = document["data"]
    tags = {"edgekit.recipe": document["recipe"]["sha256"]}
    if data is not None:
        tags["edgekit.data"] = data["digest"]
    for stage in document["stages"]:
        if stage["result"] is not None:
            tags[f"edgekit.result.{stage['name']}"] = stage["result"]
        for gate in stage["gates"]:
            words = {True: "held", False: "failed", None: "not judged"}
            tags[f"edgekit.gate.{stage['name']}.{gate['name']}"] = words[gate["passed"]]
    return tags


def _metrics(document: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    return [
        (f"{stage['name']}/{name}", value, step)
        for stage in document["stages"]
        for name, points in stage["metrics"].items()
        for step, value in points
    ]

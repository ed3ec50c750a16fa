"""Runs told to MLflow, which is installed for it in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from edgekit.errors import UsageError
from edgekit.recipe import tracking

ROOT = Path(__file__).resolve().parents[2]
SHA = "0" * 64

RUN = {
    "schema": "edgekit.run/1",
    "recipe": {"name": "toy", "sha256": SHA},
    "settings": {"train.epochs": 3, "name": "x"},
    "data": {"source": "digits", "digest": "1" * 64},
    "stages": [
        {
            "name": "train", "status": "ok", "result": "2" * 64,
            "metrics": {"loss": [[1, 0.5], [2, 0.25]]},
            "gates": [{"name": "drop", "passed": False, "text": ""}],
        }
    ],
}  # fmt: skip

READ = """
import json, sys
from pathlib import Path
from edgekit.recipe import tracking
import mlflow

document, out, uri = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
run = tracking.record(document, out, uri)
tracking.record(document, out, uri)
client = mlflow.MlflowClient(tracking_uri=uri)
found = client.get_run(run)
experiment = client.get_experiment_by_name("toy").experiment_id
print(json.dumps({
    "params": found.data.params, "tags": found.data.tags, "status": found.info.status,
    "loss": [[m.step, m.value] for m in client.get_metric_history(run, "train/loss")],
    "files": [f.path for f in client.list_artifacts(run)],
    "runs": len(client.search_runs([experiment])),
}))
"""


@pytest.mark.parametrize("uri", ["mlruns", "file:///runs", ""])
def test_a_place_that_mlflow_does_not_record_to_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="sqlite:///FILE"):
        tracking.check(uri)


@pytest.mark.slow
def test_a_run_is_recorded_in_sqlite(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", f"{ROOT}[mlflow]"]
    subprocess.run(install, check=True, timeout=500)
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text(json.dumps(RUN))
    done = subprocess.run(
        [python, "-c", READ, json.dumps(RUN), str(out), f"sqlite:///{tmp_path / 'runs.db'}"],
        capture_output=True, text=True, check=False,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["params"] == {"train.epochs": "3", "name": '"x"'}
    assert found["loss"] == [[1, 0.5], [2, 0.25]]
    assert found["tags"]["edgekit.result.train"] == "2" * 64
    assert found["tags"]["edgekit.gate.train.drop"] == "failed"
    assert (found["status"], found["files"], found["runs"]) == ("FINISHED", ["run.json"], 2)


def test_without_mlflow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit.errors import MissingDependency

    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingDependency, match=r"edgekit\[mlflow\]"):
        tracking.check("sqlite:///runs.db")

"""A bundle that names its teacher, and a server that serves both."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import schemas
from edgekit.cli.main import main
from edgekit.errors import BadData, TrustError, UsageError
from edgekit.runtime.bundle import Bundle
from edgekit.serve.teacher import join, teacher_of


def _conftest(bundles: Any) -> Any:
    return sys.modules[type(bundles).__module__]


@pytest.fixture
def teacher(bundles: Any, tmp_path: Path) -> Path:
    made = _conftest(bundles).scores_bundle(tmp_path / "large", version="9", factor=2.0)
    return _renamed(made, "scores-large")


def _renamed(path: Path, name: str) -> Path:
    from edgekit.runtime.manifest import canonical_json

    manifest = json.loads((path / "manifest.json").read_bytes())
    (path / "manifest.json").write_bytes(canonical_json({**manifest, "name": name}))
    return path


def test_a_pair_is_served_as_two_models(
    start: Any, bundles: Any, teacher: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "pair.zip"
    assert main(["serve", "pair", str(bundles.scores), str(teacher), "-o", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    schemas.validate(document)
    assert document["teacher"] == str(tmp_path / "pair-teacher")
    with Bundle.open(out) as small, Bundle.open(bundles.scores) as before:
        schemas.validate(dict(small.manifest))
        assert small.artifacts == before.artifacts
        assert small.manifest["teacher"]["version"] == "9"
    server = start(out, "--workers", 1, "--linger-s", 0)
    schemas.validate(server.document)
    assert [m["name"] for m in server.document["models"]] == ["scores", "scores-large"]
    x = np.arange(192, dtype=np.float32).reshape(1, 3, 8, 8)
    (one, two) = (server.infer(name, {"x": x})[1] for name in ("scores", "scores-large"))
    assert two["model_version"] == "9"
    small_y, large_y = (np.array(a["outputs"][0]["data"]) for a in (one, two))
    np.testing.assert_array_equal(large_y, 2 * small_y)
    assert server.stop() == 0


def test_a_teacher_that_is_absent_or_another_is_refused(
    bundles: Any, teacher: Path, tmp_path: Path
) -> None:
    student, beside = join(bundles.scores, teacher, tmp_path / "pair")
    found = teacher_of(student)
    assert found is not None and found.path == beside and found.artifact == "openvino-fp32"
    assert teacher_of(bundles.scores) is None
    _renamed(beside, "somebody-else")
    with pytest.raises(TrustError, match="not the teacher"):
        teacher_of(student)
    shutil.rmtree(beside)
    with pytest.raises(BadData, match="does not lie beside it"):
        teacher_of(student)


def test_two_models_that_are_no_pair(bundles: Any, teacher: Path, tmp_path: Path) -> None:
    for other, why in ((bundles.scores, "named"), (bundles.lookup, "labels")):
        with pytest.raises(UsageError, match=why):
            join(bundles.scores, other, tmp_path / "pair")
    (tmp_path / "pair-teacher").mkdir()
    with pytest.raises(UsageError, match="already"):
        join(bundles.scores, teacher, tmp_path / "pair")
    assert not (tmp_path / "pair").exists()


def test_another_teacher_is_not_put_in_beside_its_student(
    start: Any, bundles: Any, teacher: Path, tmp_path: Path
) -> None:
    student, beside = join(bundles.scores, teacher, tmp_path / "pair")
    keys = tmp_path / "keys"
    keys.write_text("ops admin bbbbbbbbbbbbbbbbbbbb\n")
    keys.chmod(0o600)
    server = start(student, "--workers", 1, "--linger-s", 0, "--keys", keys)
    admin = {"Authorization": f"Bearer {'b' * 20}"}
    shutil.rmtree(beside)
    shutil.copytree(bundles.scores, beside)
    _renamed(beside, "scores-large")
    x = np.arange(192, dtype=np.float32).reshape(1, 3, 8, 8)
    before = server.infer("scores-large", {"x": x}, admin)[1]
    for name in ("scores", "scores-large"):
        load = f"/v2/repository/models/{name}/load"
        status, _, said = server.ask("POST", load, headers=admin)
        assert status == 400 and "TrustError" in json.loads(said)["error"]
    after = server.infer("scores-large", {"x": x}, admin)[1]
    assert before["model_version"] == "9" and after["outputs"] == before["outputs"]
    assert server.infer("scores", {"x": x}, admin)[0] == 200
    assert server.stop() == 0

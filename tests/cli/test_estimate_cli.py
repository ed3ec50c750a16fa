"""`edgekit estimate` as people call it."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from edgekit import schemas
from edgekit.cli.main import main

MODEL = """
import torch
from torch import nn


def small():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 8, 1),
                        nn.Flatten(), nn.Linear(8 * 64, 4))
    return net.eval(), {"input": torch.randn(1, 3, 16, 16)}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("estimate") / "shop.py"
    path.write_text(MODEL)
    return f"{path}:small"


def called(*args: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["estimate", *args])
    return code, out.getvalue(), err.getvalue()


def document(*args: str) -> dict[str, Any]:
    code, out, err = called(*args, "--json")
    assert code == 0, err
    made: dict[str, Any] = json.loads(out)
    schemas.validate(made)
    return made


def test_text_says_first_what_falls_off(model: str) -> None:
    code, out, _ = called(model, "--device", "pixel-8", "--target", "tflite")
    assert code == 0
    first, *_ = out.splitlines()
    assert first.startswith("not on Mali-G715 (gpu)")
    assert "estimate for" in out and "80 % interval" in out and "basis: extrapolated" in out
    assert "peak memory" in out


def test_json_is_one_document_with_a_plan_where_asked(model: str) -> None:
    made = document(model, "--device", "raspberry-pi-5", "--target", "tflite", "--plan")
    assert made["threads"] == 4 and made["scheme"] == "w8a8"
    assert {row["target"] for row in made["plan"]} == {"tflite"}
    assert document(model, "--device", "raspberry-pi-5")["plan"] is None


@pytest.mark.slow  # the probe itself is exported too
def test_a_probe_file_moves_it(model: str, tmp_path: Path) -> None:
    where = (model, "--device", "raspberry-pi-5", "--target", "tflite", "--scheme", "fp32")
    plain = document(*where, "--threads", "1")
    result = {
        "artifact": "probe-squeezenet-fp32.tflite", "target": "tflite", "threads": 1,
        "latency_ms": {"p50": 400.0},
    }  # fmt: skip
    path = tmp_path / "probe.json"
    path.write_text(json.dumps({"schema": "edgekit.bench/1", "results": [result]}))
    probed = document(*where, "--threads", "1", "--probe", str(path))
    assert probed["basis"] == "probed"
    assert probed["latency_ms"]["p50"] > 2 * plain["latency_ms"]["p50"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "is not JSON"),
        ('{"schema": "edgekit.export/1"}', "edgekit bench --json"),
        ('{"schema": "edgekit.bench/1", "results": []}', "measures no probe"),
    ],
)
def test_probe_files_that_are_none_are_bad_data(
    model: str, tmp_path: Path, content: str, text: str
) -> None:
    path = tmp_path / "probe.json"
    path.write_text(content)
    code, _, err = called(model, "--device", "raspberry-pi-5", "--probe", str(path))
    assert code == 7 and text in err


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("--device", "no-such-device"), 2, "no-such-device"),
        (("--device", "pixel-8", "--target", "openvino"), 5, "no ready-made build"),
        (("--device", "iphone-12", "--target", "coreml"), 5, "can't be estimated"),
        (("--device", "pixel-8", "--target", "tflite", "--scheme", "w8a16"), 5, "w8a16"),
        (("--device", "pixel-8", "--target", "tflit"), 2, "tflite"),
    ],
)
def test_what_can_not_be_estimated_says_why(
    model: str, args: tuple[str, ...], code: int, text: str
) -> None:
    got, _, err = called(model, *args)
    assert got == code and text in err


def test_a_model_must_be_named() -> None:
    code, _, err = called("--device", "pixel-8")
    assert code == 2 and "name a model" in err


def test_probes_are_asked_for_by_target_and_scheme() -> None:
    for args, text in (
        (("--probe", "tflite"), "no target and scheme"),
        (("model.tflite", "--probe", "tflite-w8a8"), "of its own"),
    ):
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            assert main(["bench", *args]) == 2
        assert text in err.getvalue()


@pytest.mark.slow
@pytest.mark.runtime
def test_probes_measured_here_bring_the_estimate_to_what_is_measured(
    model: str, tmp_path: Path
) -> None:
    """The whole way: probes made, measured in their runtime, and taken by an estimate."""
    out = io.StringIO()
    quick = ("--rounds", "2", "--max-seconds", "1", "--json")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert main(["bench", "--probe", "tflite-fp32", *quick]) == 0
    path = tmp_path / "probe.json"
    path.write_text(out.getvalue())
    measured = json.loads(out.getvalue())
    schemas.validate(measured)
    names = [result["artifact"] for result in measured["results"]]
    assert names == [f"probe-{n}-fp32.tflite" for n in ("mobilenet", "resnet", "squeezenet")]
    where = ("--device", "host", "--target", "tflite", "--scheme", "fp32", "--threads", "1")
    made = document("torchvision:mobilenet_v2", *where, "--probe", str(path))
    truth = measured["results"][0]["latency_ms"]["p50"]
    assert made["basis"] in ("probed", "measured")
    assert made["latency_ms"]["p50"] == pytest.approx(truth, rel=0.2)

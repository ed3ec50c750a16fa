"""Model repositories of Triton and of OpenVINO Model Server."""

from __future__ import annotations

import json

from edgekit.errors import UnsupportedError
from edgekit.serve.deploy.facts import Facts, Made, Wishes
from edgekit.signature import TensorSpec

__all__ = ["ovms", "triton"]

_TYPES = {
    "float64": "TYPE_FP64", "float32": "TYPE_FP32", "float16": "TYPE_FP16", "int64": "TYPE_INT64",
    "int32": "TYPE_INT32", "int16": "TYPE_INT16", "int8": "TYPE_INT8", "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}  # fmt: skip
_LABELS = "labels.txt"


def triton(facts: Facts, _wishes: Wishes) -> Made:
    """``NAME/config.pbtxt``, ``NAME/1/model.onnx`` or ``model.xml`` with ``model.bin``, and labels.

    The artifact is proven with one sample at a time, and its tensors have a first dimension of 1
    that is no batch to Triton: ``max_batch_size`` is 0 and shapes are whole. Preprocessing stays
    with the client.

    Raises:
        UnsupportedError: the artifact's runtime, or a tensor's type, is none of Triton's.
    """
    facts.of_server()
    files = {f"{facts.name}/1/{name}": data for name, data in facts.as_model().items()}
    files[f"{facts.name}/config.pbtxt"] = _config(facts).encode()
    if facts.labels:
        text = "".join(f"{label}\n" for label in map(_one_line, facts.labels))
        files[f"{facts.name}/{_LABELS}"] = text.encode()
    return Made(
        files,
        (
            "tritonserver --model-repository=DIR; it was not started here",
            f"Triton needs its {facts.artifact.target} backend",
            "no preprocessing: clients send the tensors that the model takes, one sample each",
        ),
    )


def ovms(facts: Facts, _wishes: Wishes) -> Made:
    """``config.json`` and ``NAME/1/model.xml`` with ``model.bin``, or ``model.onnx``.

    Raises:
        UnsupportedError: the artifact's runtime is none of the server's.
    """
    facts.of_server()
    files = {f"{facts.name}/1/{name}": data for name, data in facts.as_model().items()}
    entry = {"name": facts.name, "base_path": f"/models/{facts.name}", "target_device": "CPU"}
    config = {"model_config_list": [{"config": entry}]}
    files["config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    return Made(
        files,
        (
            "docker run -v DIR:/models:ro -p 8000:8000 openvino/model_server:latest "
            "--config_path /models/config.json --rest_port 8000; it was not started here",
            "no preprocessing: clients send the tensors that the model takes, one sample each",
        ),
    )


def _config(facts: Facts) -> str:
    signature = facts.artifact.signature
    lines = [
        f"# Version {facts.version}, artifact {facts.artifact.id}, bundle",
        f"# {facts.digest}.",
        f"name: {json.dumps(facts.name)}",
        f"backend: {json.dumps(facts.artifact.target)}",
        "# One sample at a time, as the artifact was verified; shapes below are whole.",
        "max_batch_size: 0",
    ]
    for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            labels = facts.labels if kind == "output" and spec.labels else ()
            lines += [f"{kind} {{", *_tensor(spec, bool(labels)), "}"]
    return "\n".join([*lines, "instance_group {", "  kind: KIND_CPU", "}", ""])


def _tensor(spec: TensorSpec, labelled: bool) -> list[str]:
    if spec.dtype not in _TYPES:
        raise UnsupportedError(f"tensor {spec.name!r} is of {spec.dtype}, which Triton has not")
    dims = spec.shape or (1,)
    lines = [
        f"  name: {json.dumps(spec.name)}",
        f"  data_type: {_TYPES[spec.dtype]}",
        f"  dims: [ {', '.join(map(str, dims))} ]",
    ]
    if not spec.shape:
        # Triton's tensors have one dimension at least.
        lines.append("  reshape { shape: [ ] }")
    if labelled:
        lines.append(f"  label_filename: {json.dumps(_LABELS)}")
    return lines


def _one_line(text: str) -> str:
    return " ".join(text.split())

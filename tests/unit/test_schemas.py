"""The JSON Schemas: sound, equal to the tables of names, and strict where they should be."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel

from edgekit import device, names, schemas
from edgekit.compress.plan import Edge, QuantPlan
from edgekit.errors import BadData, MissingDependency, TrustError, UsageError
from edgekit.runtime.manifest import check_name
from edgekit.signature import DTYPES, Signature, TensorSpec

STEMS = sorted(schemas.DOCUMENTS.values())

# Objects whose keys are someone else's to choose: facts of a machine, counts by operator, the
# settings of a run. Everything else is closed.
OPEN = {
    "bench": {"facts", "rounds", "reported_memory"},
    "bench_history": {"settings"},
    "bench_matrix": {"settings"},
    "doctor": {"facts", "extras"},
    "device": {"sources"},
    "export": {"counts"},
    "estimator": {"groups", "members", "factors"},
    "inspect": {"counts"},
    "memory": {"facts", "targets"},
    "manifest": {
        *("model", "preprocess", "reference_statistics", "policy", "lineage", "evidence"),
        *("verify", "placement", "bench", "accuracy", "metadata"),
    },
    "plan": {"overrides", "methods", "settings"},
    "recipes": {"settings"},
    "run": {"settings", "reads", "versions", "digests", "metrics"},
    "run_plan": {"settings"},
    "serve_load": {"statuses", "latency_ms"},
    "telemetry_alert": {"rule"},
    "telemetry_alerts": {"where"},
    "telemetry_check": {"where"},
    "telemetry_report": {
        "where",
        "features",
        "unheld",
        "shares",
        "errors",
        "latency_s",
        "drift",
        "distances",
    },
    "tune": {"policy"},
    "verify": {"self_test"},
}

SHA = "0" * 64


def walk(schema: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every subschema with the property or definition it stands under."""
    if not isinstance(schema, dict):
        return
    yield name, schema
    for key in ("properties", "$defs"):
        for child, value in schema.get(key, {}).items():
            yield from walk(value, child)
    for key in ("items", "additionalProperties", "then", "else"):
        yield from walk(schema.get(key), name)
    for key in ("anyOf", "allOf", "oneOf"):
        for value in schema.get(key, []):
            yield from walk(value, name)


def examples() -> dict[str, dict[str, Any]]:
    """One full document of each kind."""
    found = {
        "said": "errors of requests: 3 %, at least 2.4 %; limit 2 %", "value": 0.03,
        "bound": 0.024, "limit": 0.02, "devices": 40, "requests": 9_000,
    }  # fmt: skip
    placement = {
        "ops": 7, "float_ops": 1, "undelegated_ops": None, "first_fallback": "Softmax: no kernel",
        "bytes_by_dtype": {"int8": 1000}, "first_undelegated": None,
        "ops_by_dtype": {"integer": 6, "float": 1},
    }  # fmt: skip
    told = placement | {
        "ops_by_delegate": {"xnnpack": 7, "outside": 0}, "bytes_by_delegate": None,
        "macs": {"total": 900, "by_dtype": {"integer": 900, "float": 0}, "by_delegate": None},
    }  # fmt: skip
    artifact = {
        "id": "tflite-w8a8", "target": "tflite", "delegate": "xnnpack", "scheme": "w8a8",
        "io": "float32", "variant": None, "devices": ["pixel-8"], "path": "tflite/w8a8.tflite",
        "bytes": 1200, "status": "ok", "reason": None, "verification": "runtime", "value": 0.77,
        "drop_points": 0.4, "drop_ci95": [-0.1, 0.9],
        "parity": {"against": "plan", "sqnr_db": 41.5, "agreement": 1.0, "worst_sample_db": 33.0,
                   "n": 64, "identical": False},
        "placement": told,
        "latency_ms": {"p50": 4.1, "p90": 4.4, "p99": 5.0, "n": 200, "threads": 4,
                       "where": "local"},
        "load_ms": 12.5, "peak_memory_mib": 40.0,
        "float": {"latency_p50_ms": 8.2, "bytes": 4800},
    }  # fmt: skip
    failed = dict.fromkeys(artifact) | {
        "id": "onnxruntime-w8a8", "target": "onnxruntime", "delegate": "cpu", "scheme": "w8a8",
        "devices": ["pixel-8"], "status": "failed", "reason": "no int8 kernel",
        "verification": "none",
    }  # fmt: skip
    edge = Edge("features.0.0/relu6", "relu6", "activation", "int8", (0.02,), (-128,), None,
                -128, 127, None)  # fmt: skip
    plan = QuantPlan(
        "w8a8", "d" * 64, (edge,), (("softmax", "no int8 kernel"),),
        {"source": "a.npz", "digest": SHA, "n": 128, "observer": "histogram"},
    )  # fmt: skip
    signature = Signature(
        (TensorSpec("image", (1, 3, 8, 8), layout="NCHW"),),
        (TensorSpec("logits", (1, 2), labels=("cat", "dog")),),
    )
    file = {"path": "tflite/w8a8.tflite", "bytes": 1200, "sha256": SHA}
    row = {
        "layer": "stem (conv2d)", "kind": "layer", "nodes": ["conv2d"], "sqnr_alone_db": 20.5,
        "gain_kept_db": None, "metric_alone": 96.9, "metric_kept": 98.0, "macs": 100,
        "macs_share": 0.25, "bytes": 300, "border_elements": 64,
    }  # fmt: skip
    latency = {"p50": 4.1, "p90": 4.4, "p99": None, "mad": 0.1, "n": 20}
    conditions = {
        "thermal": "throttled",
        "busy": False,
        "throttling": ["core_throttle_count rose"],
        "waited_s": 12.5,
        "temperature_c": {"first": 40.0, "highest": 80.0, "last": 80.0},
        "frequency_mhz": None,
        "load_average": None,
        "running": 2,
        "cpu_share": 0.99,
        "slowed": 1.2,
        "affinity": [4, 5],
        "governors": ["schedutil"],
        "battery": {
            "percent": 80.0,
            "status": ["discharging"],
            "power_save": None,
            "screen_on": True,
        },
    }
    hoped = {"value": 90.0, "low": 88.0, "high": 92.0}
    policy = {
        "schema": "edgekit.policy/1", "temperature": 1.2, "min_confidence": 0.6,
        "otherwise": "cloud", "timeout_ms": 500, "signal": "confidence", "scores": "logits",
        "output": None, "same_inputs": True,
        "chosen": {
            "rule": {"kind": "keep", "value": 99.0}, "bundle": SHA, "artifact": "tflite-w8a8",
            "teacher": {"name": "large", "version": None, "digest": None},
            "tuned_on": {"source": "dev.tsv", "digest": SHA, "n": 400},
            "reported_on": {"source": "test.tsv", "digest": SHA, "n": 600},
            "expected": {
                "cloud_share": hoped, "accuracy": hoped, "device": 87.0, "teacher": 91.0,
                "random": 88.0, "gain_over_random": hoped,
                "latency": {"device_ms": 1.0, "cloud_ms": 20.0, "mean_ms": 5.0,
                            "cloud_kind": "measured"},
            },
        },
    }  # fmt: skip
    sensitivity = {
        "n": 32, "sqnr_db": 18.0, "metric": "agreement", "metric_quantized": 93.8,
        "metric_float": 100.0, "layers": [row],
    }  # fmt: skip
    kept = {
        "scheme": "w8a8", "variant": None, "limit": 0.5,
        "n": 372, "drop_before": 5.1, "drop_after": 0.3,
        "units": ["stem (conv2d)"], "of": 60, "layers": 2, "macs_share": 0.02, "bytes": 900,
        "evaluations": 7,
    }  # fmt: skip
    few = {"artifact": "a", "p50_ms": 4.0, "p90_ms": None, "peak_memory_mib": 9.5,
           "insufficient": ["few: 2 calls"]}  # fmt: skip
    budget = {"artifact": "a", "name": "max-bytes@raspberry-pi-5", "limit": 10, "value": 11,
              "passed": False, "detail": None}  # fmt: skip
    return {
        "export": {
            "schema": "edgekit.export/1", "model": "torchvision:mobilenet_v2", "bundle": "out",
            "devices": ["pixel-8"], "metric": "top1",
            "reference": {"kind": "float", "value": 0.78, "n": 872},
            "artifacts": [artifact, failed],
            "gates": [{"artifact": "tflite-w8a8", "name": "max-drop", "limit": 1.0, "value": 0.4,
                       "passed": True, "detail": "0.4 points", "waived": True}],
            "wall_s": 31.0,
        },
        "plan": plan.to_json() | {"sensitivity": sensitivity},
        "verify": {
            "schema": "edgekit.verify/1", "artifact": "a.tflite", "against": "plan",
            "checks": [{"name": "sqnr", "passed": True, "value": None, "limit": 35.0,
                        "detail": "identical", "flag": "inf"}],
            "outputs": [{"name": "logits", "sqnr_db": 41.0, "agreement": 1.0,
                         "worst_sample_db": 33.0, "max_abs_error": 0.1, "within_2_steps": 1.0,
                         "n": 64}],
            "first_bad_layer": None, "self_test": {"passed": True}, "passed": True,
        },
        "bench": {
            "schema": "edgekit.bench/1", "where": "local", "facts": {"cpu": "x"},
            "device": "raspberry-pi-5", "gates": [budget],
            "started": "2026-11-26T10:00:00+00:00",
            "settings": {"threads": 1, "runs": 20, "max_seconds": 1.0, "rounds": 1, "cpus": "big",
                         "max_temperature_c": None, "cool_down_s": 60.0, "sustained_s": 600.0,
                         "profile": True},
            "results": [{
                "artifact": "a.tflite", "target": "tflite", "scheme": "w8a8",
                "delegate": "xnnpack", "threads": 1, "runtime": "ai-edge-litert 2.3.0",
                "load_ms": 3.0, "first_ms": 5.0, "latency_ms": latency,
                "samples_ms": [4.1, 4.2], "whole_ms": 4.3, "insufficient": ["few: 2 calls"],
                "steady": {"method": "PELT", "states": {"flat": 1}, "unsteady_rounds": 0},
                "peak_memory_mib": 40.0, "added_memory_mib": 9.0, "pss_memory_mib": None,
                "reported_memory": None,
                "energy": {"joules_per_call": 0.01, "source": "rapl", "reason": None},
                "bytes": 1200, "conditions": conditions, "rounds": [{"n": 2}],
                "sustained": {
                    "seconds": 600.0, "samples_ms": [4.0, 6.0], "window_s": 60.0,
                    "kept_every": 3, "energy": None,
                    "series": [{"at_s": 5.0, "p50": 4.0, "p90": None, "n": 9,
                                "temperature_c": 61.0, "frequency_mhz": 1800}],
                    "first": latency, "last": latency, "ratio": 1.4, "conditions": conditions,
                },
                "profile": {
                    "how": "LiteRT's profiler", "resolution_us": 1.0, "runtime_version": "x",
                    "plain_ms": 4.0, "profiled_ms": 4.2, "inside_ms": None, "sum_ms": 4.1,
                    "calls": 50, "covered": 0.98, "overhead": 1.05, "notes": [],
                    "layers": [{"name": "0: Conv", "layer": "net.0", "kind": "Conv",
                                "kernel": None, "ms": 4.1, "share": 1.0}],
                },
                "notes": [],
            }],
            "comparisons": [{"a": "x", "b": "y", "metric": "latency", "ratio": 0.9,
                             "ci95": [0.8, 0.95], "verdict": "faster", "unlike": []}],
        },
        "estimate": {
            "schema": "edgekit.estimate/1", "estimate": True, "model": "m", "device": "pixel-8",
            "target": "tflite", "delegate": "xnnpack", "scheme": "w8a8", "threads": 5,
            "precision": "int8",
            "falls_off": {
                "accelerators": [{"name": "TPU", "kind": "tpu", "reason": "r", "advice": "a"}],
                "delegate": {"name": "xnnpack", "undelegated_ops": None, "first": None,
                             "why": "known once the model is exported"},
                "slower": {"median": 11.5, "p10": 3.2, "p90": 37.5, "n": 251, "source": "s"}},
            "latency_ms": {"p50": 2.0, "low": 1.0, "high": 4.0}, "coverage": 0.8,
            "basis": "same core", "assumed": ["17 GB/s"],
            "peak_memory_mib": {"value": 60.0, "low": 48.0, "high": 72.0, "runtime_mib": 45.0,
                                "weights_mib": 3.3, "arena_mib": 1.4, "basis": "measured"},
            "layers": [{"name": "stem", "kind": "stem", "ms": 0.1, "share": 0.05}],
            "by_kind": [{"kind": "stem", "ms": 0.1, "share": 0.05}],
            "plan": [{"rank": 1, "tied_with_first": False, "target": "tflite",
                      "delegate": "xnnpack", "unit": "CPU", "scheme": "w8a8", "threads": 5,
                      "latency_ms": {"p50": 2.0, "low": 1.0, "high": 4.0},
                      "times_first": {"ratio": 1.0, "low": 1.0, "high": 1.0},
                      "basis": "same core", "peak_memory_mib": None, "reason": "int8 kernels"}],
            "sources": ["a page"],
        },
        "estimator": {
            "schema": "edgekit.estimator/1", "features": ["conv"], "rates": [0.1],
            "slopes": [[0.1]], "groups": {"core": {"Cortex-A76": [0.1]}},
            "likeness": {"graphs": [[0.1]], "cell_graph": [0], "cells": [[0]], "names": [["a"]],
                         "alpha": [0.1]},
            "interval": {"coverage": 0.8, "factors": {"probed float": 1.3}},
            "sources": [{"table": "a.csv", "sha256": SHA, "from": "a page"}],
        },
        "memory": {
            "schema": "edgekit.memory/1", "facts": {},
            "targets": {"tflite": {"base_mib": 40.0, "float": {"weights": 2.0, "arena": 1.0},
                                   "int8": {"weights": 2.0, "arena": 1.0}, "relative": 0.2,
                                   "basis": "measured on x86-64 Linux"}},
        },
        "quantize": {
            "schema": "edgekit.quantize/1", "model": "m", "scheme": "w8a8", "folder": "out",
            "plan": {"digest": SHA, "program_digest": SHA, "edges": 9,
                     "kept_float": [{"node": "conv2d", "reason": "kept"}]},
            "metric": "top1", "reference": {"kind": "float", "value": 71.2, "n": 372},
            "value": 70.9, "drop_points": 0.3, "drop_ci95": [-0.2, 0.8],
            "sensitivity": sensitivity, "kept_for_accuracy": [kept], "wall_s": 3.5,
        },
        "clients": {
            "schema": "edgekit.clients/1", "out": "clients", "files": ["README.md"],
            "bundle": {"name": "net", "version": "1", "digest": SHA},
        },
        "jobs": {"schema": "edgekit.jobs/1", "model": "net.pt2", "jobs": [
            {"artifact": "tflite-w8a8", "target": "tflite", "scheme": "w8a8",
             "delegate": "xnnpack", "io": "float32", "devices": ["pixel-8"], "threads": 4}]},
        "inspect": {
            "schema": "edgekit.inspect/1", "kind": "artifact", "path": "a.tflite",
            "target": "tflite", "bytes": 1200,
            "inputs": [{"name": "x", "shape": [1, 8], "dtype": "float32"}],
            "outputs": [{"name": "y", "shape": [1, 2], "dtype": "int8", "scale": 0.1,
                         "zero_point": 3}],
            "placement": placement | {"ops": {"CONV_2D": 7}, "boundary_ops": 2, "waste": {}},
        },
        "manifest": {
            "schema": "edgekit.bundle/1", "name": "m", "version": "1", "edgekit": "0.1.0",
            "signature": signature.to_json(), "labels": ["cat", "dog"], "preprocess": None,
            "golden": {"path": "golden.npz", "sha256": SHA, "n": 4},
            "artifacts": [{
                "id": "tflite-w8a8", "target": "tflite", "delegate": "xnnpack", "scheme": "w8a8",
                "io": "float32", "variant": None, "devices": [], "path": file["path"],
                "bytes": 1200, "sha256": SHA, "files": [file],
                "requires": {"runtime": "ai-edge-litert", "min_version": "2.0", "isa": []},
                "verification": "runtime", "evidence": {"placement": placement},
            }],
            "files": [dict(file), {"path": "golden.npz", "bytes": 9, "sha256": SHA}],
            "lineage": {"source": "torchvision:mobilenet_v2"}, "licence": None,
        },
        "device": device.load("galaxy-s24").to_json(),
        "devices": {"schema": "edgekit.devices/1", "devices": [
            {"id": "a", "name": "A", "soc": "S", "arch": "arm64", "targets": ["tflite"],
             "threads": 4}]},
        "device_check": {"schema": "edgekit.device-check/1", "passed": False, "profiles": [
            {"file": "a.toml", "id": None, "passed": False, "problems": ["x"], "unverified": []}]},
        "targets": {"schema": "edgekit.targets/1", "targets": [
            {"id": "tflite", "suffix": ".tflite", "extra": "tflite", "schemes": ["w8a8"],
             "delegates": ["xnnpack"], "ios": ["float32", "uint8"], "installed": True,
             "version": "x 1", "install": None}]},
        "run": {
            "schema": "edgekit.run/1", "recipe": {"name": "mobilenet", "sha256": SHA},
            "settings": {"train.epochs": 16}, "data": {"source": "digits", "digest": SHA},
            "devices": ["pixel-8"], "versions": {"torch": "2.13.0"},
            "machine": {"system": "Linux", "machine": "x86_64", "python": "3.11.2",
                        "processor": ["avx2"], "cores": 2},
            "wall_s": 1.0, "stages": [
                {"name": "train", "status": "ok", "cached": False, "why": "first run",
                 "fingerprint": SHA, "inputs": {"data": SHA}, "reads": {"train.epochs": 16},
                 "result": SHA, "value": {"top1": 97.5}, "attempts": 1, "wall_s": 0.1,
                 "files": [{"path": "weights.safetensors", "bytes": 9, "sha256": SHA}],
                 "metrics": {"loss": [[0, 2.3], [1, 0.7]]}, "notes": ["resumed"], "reason": None,
                 "gates": [{"name": "drop", "passed": True, "text": "0.1 of 1.0"}]}],
        },
        "run_plan": {
            "schema": "edgekit.run-plan/1", "recipe": "mobilenet", "settings": {"n": 1},
            "stages": [{"name": "train", "state": "run", "why": "never run", "doc": "Trains."}],
        },
        "recipes": {"schema": "edgekit.recipes/1", "recipes": [
            {"name": "mobilenet", "doc": "Trains.", "path": "recipes/mobilenet.py",
             "stages": [{"name": "train", "needs": ["cfg"], "doc": "Trains."}],
             "settings": {"n": 1}}]},
        "evidence": {
            "schema": "edgekit.evidence/1", "output": "y", "scores": "logits", "labels": None,
            "of": {"kind": "artifact", "name": "m", "artifact": "tflite-w8a8", "target": "tflite",
                   "scheme": "w8a8", "sha256": SHA, "bundle": SHA, "runtime": "ai-edge-litert 2"},
            "data": {"source": "digits", "digest": SHA}, "n": 2, "top1": 50.0, "loss": None,
            "classes": [{"n": 2, "predicted": 1, "correct": 1}],
            "confusion": [{"label": 0, "prediction": None, "n": 1}],
            "worst": [{"sample": 1, "label": 0, "prediction": 0, "confidence": 0.9, "loss": 0.1,
                       "label_confidence": 0.9, "shown": "picture", "text": None,
                       "picture": "pictures/worst-00.png"}],
            "layers": [{"layer": "conv", "parameters": 9, "bytes": 36}],
        },
        "report": {
            "schema": "edgekit.report/1", "page": "report.html", "bytes": 9, "sha256": SHA,
            "sources": [{"path": "out", "kind": "run", "title": "m", "missing": [],
                         "documents": ["edgekit.export/1"]}],
            "sections": [{"id": "gates", "title": "Gates", "shown": False, "reason": "none"}],
            "gates": {"held": 1, "failed": 0, "not_judged": 0},
        },
        "doctor": {
            "schema": "edgekit.doctor/1", "edgekit": "0.1.0", "python": "3.11.2", "facts": {},
            "checks": [{"name": "core", "passed": True, "detail": "numpy 2", "hint": None}],
            "extras": {"core": {"complete": True, "packages": [
                {"name": "numpy", "wanted": ">=2", "version": "2.0", "ok": True}]}},
            "targets": [{"id": "tflite", "installed": True,
                         "round_trip": {"ok": True, "detail": "", "seconds": 1.0}}],
            "missing": [], "install": None, "passed": True,
        },
        "bundle_diff": {
            "schema": "edgekit.bundle-diff/1",
            "old": {"path": "a.zip", "name": "m", "version": "1", "digest": SHA},
            "new": {"path": "b.zip", "name": "m", "version": "2", "digest": SHA},
            "identical": False,
            "bundle": [{"what": "version", "old": "1", "new": "2", "verdict": "changed"}],
            "artifacts": [{"id": "tflite-w8", "was": "tflite-w8a8", "change": "changed",
                           "changes": [
                {"what": "accuracy", "old": 90.0, "new": 85.0, "verdict": "worse",
                 "ci95": [-7.9, -2.1], "detail": "x"}]}],
            "regressed": ["tflite-w8: accuracy"], "removed": [], "contract": [],
        },
        "bench_matrix": {
            "schema": "edgekit.bench-matrix/1", "session": 1, "store": "bench.sqlite",
            "complete": False,
            "cells": [{
                "subject": "a.zip", "url": "ssh://pi", "device": "raspberry-pi-5", "settings": {},
                "status": "failed", "reason": "gone", "exit_code": 4, "attempts": 2,
                "resumed": False, "measurement": 3, "results": [few],
            }],
            "gates": [{"cell": 0, **budget}],
        },
        "bench_history": {
            "schema": "edgekit.bench-history/1", "store": "bench.sqlite",
            "measurements": [{
                "id": 3, "session": None, "created": "2026-11-26T10:00:00+00:00",
                "url": "adb://X", "device": None, "subject": "a.zip", "settings": {},
                "status": "ok", "reason": None, "attempts": 1, "results": [few],
            }],
        },
        "bench_compare": {
            "schema": "edgekit.bench-compare/1", "a": "12", "b": "new.json",
            "comparisons": [{
                "a": "tflite-fp32", "b": "tflite-w8a8", "metric": "latency_p50", "paired": True,
                "rounds": [10, 10], "p50_ms": [8.0, 4.0], "ratio": 0.5, "ci95": [0.4, 0.6],
                "verdict": "faster", "unlike": ["cpu: x against y"], "changed": ["kernel: 1, 2"],
            }],
        },
        "policy": policy,
        "tune": {
            "schema": "edgekit.tune/1", "bundle": {"name": "n", "version": "1", "digest": SHA},
            "out": "tuned.zip", "policy": policy, "verdict": "not shown",
            "calibration": {"nll_before": 0.5, "nll_after": 0.4},
            "curve": [{
                "threshold": 0.8, "cloud_share": 20.0, "cloud_share_ci95": [18.0, 22.0],
                "accuracy": 90.0, "accuracy_ci95": [88.0, 92.0], "random": 88.0, "gain": 2.0,
                "gain_ci95": [1.0, 3.0], "latency_ms": 4.5,
            }],
        },
        "telemetry": {
            "schema": "edgekit.telemetry/1",
            "resource": {"service.name": "edgekit", "edgekit.bundle.version": "1.2.0"},
            "metrics": [
                {"name": "edgekit.inference.requests", "unit": "{request}", "points": [
                    {"attributes": {"edgekit.source": "device", "edgekit.reason": "sure"},
                     "value": 3}]},
                {"name": "edgekit.inference.duration", "unit": "s", "points": [
                    {"attributes": {"edgekit.source": "device"}, "scale": 5, "zeros": 0,
                     "offset": -213, "counts": [1, 0, 2]}]},
            ],
        },
        "telemetry_report": {
            "schema": "edgekit.telemetry-report/1", "first_day": 20_000, "last_day": 20_006,
            "baseline": [19_970, 19_999], "references": None, "by": ["device"],
            "where": {"model": "net"}, "k": 10,
            "base_cells": {"shown": 3, "left_out": None},
            "cohorts": [{
                "device": "pixel-8", "devices": 12, "device_days": 70, "requests": 120,
                "sources": {"device": 0.9, "cloud": 0.1}, "reasons": {"sure": 1.0},
                "error_rate": 0.01, "error_rate_ci95": [0.001, 0.05],
                "fallback_rate": 0.1, "fallback_rate_ci95": [0.05, 0.2],
                "errors": {"MemoryError": 1}, "crashes": 1, "crashes_per_device_day": 0.014,
                "crash_rate": 0.014, "crash_rate_ci95": [0.001, 0.08], "series": [], "noised": [],
                "latency_s": {"device": {"p50": 0.01, "p90": 0.02, "p95": 0.02, "p99": 0.03,
                                         "count": 108, "relative_error": 0.0109}},
                "memory_bytes": None,
                "confidence": {"count": 120, "mean": 0.9, "mean_error": 0.025,
                               "bins": [0] * 18 + [120, 0]},
                "drift": {"prediction.confidence": {
                    "flagged": False, "distances": {"psi": {"value": 0.01, "limit": 0.02}},
                    "false_alarms": 0.005, "design_effect": 1.5, "counts": [900, 120], "bins": 4}},
            }],
        },
        "telemetry_alert": {
            "schema": "edgekit.telemetry-alert/1", "id": "0" * 32, "alert": "1" * 32,
            "name": "errors", "rule": {"kind": "error_rate", "limit": 0.02}, "state": "firing",
            "reason": "", "at_s": 1_700_000_000, "since_s": 1_700_000_000, **found,
        },
        "telemetry_alerts": {
            "schema": "edgekit.telemetry-alerts/1", "looked_s": 1_700_000_000, "interval_s": 300.0,
            "rules": [{"name": "errors", "kind": "error_rate", "where": {"model": "net"},
                       "state": "firing", "since_s": 1_700_000_000, **found}],
            "webhook": {"waiting": 0, "lost": 0, "ok": 1, "failed": 0, "given_up": 0},
        },
        "telemetry_check": {
            "schema": "edgekit.telemetry-check/1",
            "rules": [{"name": "errors", "kind": "error_rate", "where": {}, "beyond": True,
                       **found}],
        },
        "telemetry_canary": {
            "schema": "edgekit.telemetry-canary/1", "first_day": 20_000, "last_day": 20_013,
            "k": 10, "alpha": 0.01, "control": {"version": "1.0", "device_days": 60, "failed": 2},
            "canary": {"version": "1.1", "device_days": 20, "failed": 10}, "worse": True,
            "p": 0.0001, "evidence": 10_000.0, "since_day": 20_004,
        },
        "telemetry_serve": {"schema": "edgekit.telemetry-serve/1",
                            "url": "http://127.0.0.1:4318", "store": "fleet.duckdb"},
        "serve_export": {"schema": "edgekit.serve-export/1", "for": "triton", "out": "models",
                         "files": ["net/config.pbtxt"], "notes": ["it was not started here"]},
        "serve_load": {
            "schema": "edgekit.serve-load/1", "url": "http://127.0.0.1:8000", "request": "net",
            "rate": 50.0, "concurrency": 512, "objective_ms": None, "seconds": 10.0, "sent": 3,
            "offered_per_s": 0.3, "answered_per_s": 0.2, "good_per_s": 0.2,
            "statuses": {"200": 2}, "unanswered": 1,
            "latency_ms": {"200": {"p50": 1.0, "p90": 2.0, "p99": 2.0, "p100": 2.0}},
            "generator": {"late_ms_p99": 0.2, "cpu_s": 0.1},
        },
        "pair": {"schema": "edgekit.pair/1", "student": "a.zip", "teacher": "a-teacher.zip"},
        "serve": {"schema": "edgekit.serve/1", "url": "http://127.0.0.1:8000", "models": [
            {"name": "net", "state": "ready", "reason": "", "version": "1", "digest": SHA,
             "serving": {"artifact": "openvino-w8a8", "runtime": "openvino 2026.4.1", "workers": 2,
                         "threads": 1, "lone_threads": 2, "batches": [2, 4], "max_rows": 32,
                         "row_us": 812.5, "notes": ["batches of 8 are no faster: not used"]}},
            {"name": "other", "state": "failed", "reason": "it does not load"}]},
        "error": {"schema": "edgekit.error/1", "error": {
            "kind": "UsageError", "message": "no", "hint": "", "exit_code": 2}},
    }  # fmt: skip


# -- the schemas themselves -----------------------------------------------------------------------


def test_every_file_is_a_document_and_every_document_a_file() -> None:
    directory = Path(schemas.__file__).parent
    assert sorted(path.stem for path in directory.glob("*.json")) == STEMS
    for name, stem in schemas.DOCUMENTS.items():
        assert schemas.load(name)["properties"]["schema"] == {"const": name}
        assert schemas.load(stem) == schemas.load(name)
    assert set(examples()) == set(STEMS)


@pytest.mark.parametrize("stem", STEMS)
def test_schema_is_sound(stem: str) -> None:
    schema = schemas.load(stem)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    kind, version = schema["properties"]["schema"]["const"].removeprefix("edgekit.").split("/")
    assert schema["$id"] == f"urn:edgekit:schema:{kind}:{version}"
    assert "schema" in schema["required"]
    for _, part in walk(schema):
        if "properties" in part:
            assert set(part.get("required", [])) <= set(part["properties"])


@pytest.mark.parametrize("stem", STEMS)
def test_objects_are_closed_unless_listed(stem: str) -> None:
    found = set()
    for name, part in walk(schemas.load(stem)):
        kind = part.get("type", "")
        is_object = "object" in ([kind] if isinstance(kind, str) else kind)
        if is_object and part.get("additionalProperties") is not False:
            found.add(name)
    assert found == OPEN.get(stem, set())


@pytest.mark.parametrize("stem", STEMS)
def test_enumerations_are_the_tables_of_names(stem: str) -> None:
    targets = [*names.TARGETS, names.TEST_TARGET]
    tables: dict[str, list[Any]] = {
        "target": targets,
        "scheme": list(names.SCHEMES),
        "schemes": list(names.SCHEMES),
        "status": list(names.STATUSES),
        "verification": list(names.VERIFICATIONS),
        "exit_code": [code for code in names.EXIT_CODES if code],
    }
    if stem == "devices":
        tables["targets"] = targets
    if stem == "device":
        del tables["status"]  # of an accelerator: another word
    for name, part in walk(schemas.load(stem)):
        if name in tables and "enum" in part:
            assert [value for value in part["enum"] if value is not None] == tables[name], name
        if stem == "manifest" and name == "dtype":
            assert part["enum"] == list(DTYPES)
    if stem in ("export", "manifest"):
        found = {n for n, p in walk(schemas.load(stem)) if "enum" in p}
        assert {"target", "scheme", "verification"} <= found


def test_the_device_schema_is_the_device_model() -> None:
    schema = schemas.load("device")

    def compare(model: type[BaseModel], part: dict[str, Any]) -> None:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        assert set(part["properties"]) == set(fields), model
        needed = {name for name, field in fields.items() if field.is_required()}
        assert set(part.get("required", ())) - {"schema"} == needed, model

    compare(device.Device, schema)
    properties, parts = schema["properties"], schema["$defs"]
    compare(device.Cpu, properties["cpu"])
    compare(device.Isa, properties["isa"])
    compare(device.Memory, properties["memory"])
    compare(device.Budgets, properties["budgets"])
    compare(device.Bench, properties["bench"])
    compare(device.UnsupportedTarget, properties["unsupported"]["items"])
    compare(device.Cluster, parts["cluster"])
    compare(device.Accelerator, parts["accelerator"])
    compare(device.TargetSupport, parts["support"])
    compare(device.Anchor, parts["anchor"])


@pytest.mark.parametrize(
    "name",
    [
        "a.tflite", "a/b_c@1+2=3,4.bin", "model.mlpackage/Data/weights.bin", "", "/a", "a/", "a//b",
        ".", "..", "a/../b", "a/.", "-rf", "a/-b", "a.", "a b", "a\\b", "c:d", "a\n", "a\0", "é",
        "a" * 240, "a" * 241,
    ],
)  # fmt: skip
def test_the_manifest_allows_the_names_that_its_reader_allows(name: str) -> None:
    part = schemas.load("manifest")["$defs"]["path"]
    try:
        check_name(name)
        allowed = True
    except TrustError:
        allowed = False
    assert jsonschema.Draft202012Validator(part).is_valid(name) == allowed


# -- validate -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", STEMS)
def test_a_full_document_passes(stem: str) -> None:
    schemas.validate(examples()[stem])
    schemas.validate(json.loads(json.dumps(examples()[stem])))


@pytest.mark.parametrize("name", device.available())
def test_every_profile_passes(name: str) -> None:
    schemas.validate(device.load(name).to_json())


@pytest.mark.parametrize("stem", STEMS)
def test_every_required_key_is_missed_and_a_new_one_refused(stem: str) -> None:
    document = examples()[stem]
    for key in schemas.load(stem)["required"]:
        less = {k: v for k, v in document.items() if k != key}
        with pytest.raises(BadData, match=key):
            schemas.validate(less)
    with pytest.raises(BadData, match="surplus"):
        schemas.validate(document | {"surplus": 1})


@pytest.mark.parametrize(
    ("stem", "path", "value", "where"),
    [
        ("export", "artifacts.0.status", "fine", r"$.artifacts[0].status"),
        ("export", "artifacts.0.target", "core-ml", r"$.artifacts[0].target"),
        ("export", "artifacts.0.drop_ci95", [1.0], r"$.artifacts[0].drop_ci95"),
        ("export", "artifacts.0.path", None, r"$.artifacts[0].path"),
        ("export", "artifacts.1.reason", None, r"$.artifacts[1].reason"),
        ("export", "artifacts.0.parity.agreement", 1.5, r"$.artifacts[0].parity.agreement"),
        ("export", "gates.0.passed", "yes", r"$.gates[0].passed"),
        ("plan", "edges.0.scale", [0.0], r"$.edges[0].scale[0]"),
        ("plan", "edges.0.scale", [], r"$.edges[0].scale"),
        ("plan", "calibration", {"source": "x"}, r"$.calibration"),
        ("bench", "results.0.latency_ms.p50", 0, r"$.results[0].latency_ms.p50"),
        ("bench", "comparisons.0.verdict", "better", r"$.comparisons[0].verdict"),
        ("manifest", "files.0.path", "../x", r"$.files[0].path"),
        ("manifest", "artifacts.0.sha256", SHA.upper() + "A", r"$.artifacts[0].sha256"),
        ("device", "isa.arch", "riscv64", r"$.isa.arch"),
        ("error", "error.exit_code", 0, r"$.error.exit_code"),
        ("verify", "passed", None, r"$.passed"),
    ],
)
def test_the_first_misfit_is_named_by_its_path(
    stem: str, path: str, value: object, where: str
) -> None:
    document = copy.deepcopy(examples()[stem])
    *parents, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    part: Any = document
    for key in parents:
        part = part[key]
    assert part[last] != value
    part[last] = value
    with pytest.raises(BadData) as raised:
        schemas.validate(document)
    assert f"{document['schema']}: {where}: " in raised.value.message


def test_numbers_that_json_lacks_are_refused() -> None:
    document = examples()["export"]
    for value in (float("nan"), float("inf"), float("-inf")):
        document["artifacts"][0]["load_ms"] = value
        with pytest.raises(BadData, match=r"\$\.artifacts\[0\]\.load_ms is -?(nan|inf)"):
            schemas.validate(document)


def test_the_schema_field_decides() -> None:
    with pytest.raises(BadData, match=r"\$\.schema is missing"):
        schemas.validate({})
    with pytest.raises(BadData, match=r"\$\.schema is 'edgekit.export/2'"):
        schemas.validate({"schema": "edgekit.export/2"})
    with pytest.raises(BadData, match=r"\$\.schema is \['a'\]"):
        schemas.validate({"schema": ["a"]})
    with pytest.raises(UsageError, match=r"unknown schema 'exprot'\. Did you mean 'export'"):
        schemas.load("exprot")


def test_a_long_value_is_not_quoted_in_full() -> None:
    document = examples()["bench"]
    document["results"][0]["samples_ms"] = "9" * 100_000
    with pytest.raises(BadData) as raised:
        schemas.validate(document)
    assert len(raised.value.message) < 400


def test_without_jsonschema_the_message_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    schemas._validator.cache_clear()
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(MissingDependency, match="pip install jsonschema"):
        schemas.validate(examples()["error"])
    monkeypatch.undo()
    schemas.validate(examples()["error"])


def test_load_gives_a_fresh_copy() -> None:
    schemas.load("export")["title"] = "changed"
    assert schemas.load("export")["title"] != "changed"

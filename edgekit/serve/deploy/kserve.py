"""KServe: a ServingRuntime with our container, and an InferenceService that uses it."""

from __future__ import annotations

from typing import Any

import edgekit
from edgekit.errors import UsageError
from edgekit.serve.deploy._yaml import to_yaml
from edgekit.serve.deploy.docker import GRACE_S, HOME, LINGER_S, SCRATCH, USER
from edgekit.serve.deploy.facts import Facts, Made, Wishes

__all__ = ["made"]

_PORT = 8080
_MODELS = "/mnt/models"


def made(facts: Facts, wishes: Wishes) -> Made:
    """``inferenceservice.yaml``.

    Raises:
        UsageError: no image is named.
    """
    if wishes.image is None:
        raise UsageError(
            "KServe runs a container with edgekit in it: name it with --image",
            hint="edgekit serve export BUNDLE --for docker -o DIR makes what builds one",
        )
    comment = (
        f"Model {facts.name!r}, version {facts.version}, bundle {facts.digest}.\n"
        f"Written by edgekit {edgekit.__version__}; kubectl apply -f inferenceservice.yaml"
    )
    notes = [
        "kubectl apply -f inferenceservice.yaml; it was not applied to a cluster here",
        f"clients: /v2/models/{facts.name}/infer",
    ]
    if wishes.storage_uri is None:
        notes.append(f"the image {wishes.image} is to hold the bundle at {HOME}/{facts.stored}")
    else:
        notes.append(f"put the bundle's files, as a folder, at {wishes.storage_uri}")
    if facts.teacher is not None:
        notes.append(f"the teacher {facts.teacher.name!r} is not in it: export its bundle, too")
    documents = (_runtime(facts, wishes), _service(facts, wishes))
    return Made({"inferenceservice.yaml": to_yaml(*documents, comment=comment)}, tuple(notes))


def _runtime(facts: Facts, wishes: Wishes) -> dict[str, Any]:
    where = f"{HOME}/{facts.stored}" if wishes.storage_uri is None else _MODELS
    probe = {"httpGet": {"path": "/v2/health/ready", "port": _PORT}, "periodSeconds": 5}
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": f"edgekit-{facts.label}"},
        "spec": {
            "supportedModelFormats": [{"name": "edgekit", "version": "1", "autoSelect": False}],
            "protocolVersions": ["v2"],
            "containers": [
                {
                    # KServe looks for this name.
                    "name": "kserve-container",
                    "image": wishes.image,
                    "command": ["edgekit", "serve"],
                    "args": [
                        *(
                            facts.argument(where),
                            "--no-teacher",
                            "--host",
                            "0.0.0.0",
                            "--port",
                            str(_PORT),
                        ),
                        *("--artifact", facts.artifact.id),
                        *("--linger-s", str(LINGER_S), "--grace-s", str(GRACE_S)),
                    ],
                    "ports": [{"containerPort": _PORT, "protocol": "TCP"}],
                    "readinessProbe": probe,
                    "livenessProbe": {
                        "httpGet": {"path": "/v2/health/live", "port": _PORT},
                        "periodSeconds": 10,
                        "failureThreshold": 6,
                    },
                    "resources": {
                        "requests": {"cpu": "1", "memory": "1Gi"},
                        "limits": {"cpu": "2", "memory": "2Gi"},
                    },
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": USER,
                        "readOnlyRootFilesystem": True,
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    # Where the server keeps the copy that it serves.
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                }
            ],
            "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": f"{SCRATCH}i"}}],
        },
    }


def _service(facts: Facts, wishes: Wishes) -> dict[str, Any]:
    model: dict[str, Any] = {
        "modelFormat": {"name": "edgekit", "version": "1"},
        "runtime": f"edgekit-{facts.label}",
        "protocolVersion": "v2",
    }
    if wishes.storage_uri is not None:
        model["storageUri"] = wishes.storage_uri
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": facts.label,
            "annotations": {"edgekit/bundle": facts.digest, "edgekit/version": facts.version},
        },
        "spec": {
            "predictor": {
                "minReplicas": wishes.min_replicas,
                "maxReplicas": wishes.max_replicas,
                "scaleMetric": "concurrency",
                "scaleTarget": 4,
                "terminationGracePeriodSeconds": GRACE_S + LINGER_S + 10,
                "model": model,
            }
        },
    }

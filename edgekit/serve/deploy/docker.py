"""Docker: a Dockerfile with the bundle in the image, and a compose file to run it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import edgekit
from edgekit.errors import UnsupportedError
from edgekit.serve.deploy._yaml import to_yaml
from edgekit.serve.deploy.facts import Facts, Made, Wishes

__all__ = ["GRACE_S", "HOME", "LINGER_S", "SCRATCH", "USER", "made", "wheels"]

USER: Final = 10001
HOME: Final = "/srv/edgekit"
"""Where bundles lie in an image."""
GRACE_S: Final = 30
LINGER_S: Final = 5
SCRATCH: Final = "2G"
"""Of the folder in memory where the server keeps the copy of a bundle that it serves."""

_WHEELS = {
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "tflite": "ai-edge-litert",
    "executorch": "executorch",
    "torch-mobile": "torch",
}

_DOCKERFILE = """\
# Model {name}, version {version}, bundle
# {digest}.
# Written by edgekit {edgekit}; not built where it was written.
#
#   docker build -t {image} .
#
# No secrets are in the image. Keys come at run time; see compose.yaml.
FROM python:3.12-slim-bookworm

# edgekit itself: from wheels/ where it lies there, else from the package index.
COPY wheels/ /wheels/
RUN python -m venv /usr/local/lib/edgekit \\
 && /usr/local/lib/edgekit/bin/pip install --no-cache-dir --find-links /wheels \\
    {packages} \\
 && groupadd --system --gid {user} edgekit \\
 && useradd --system --uid {user} --gid {user} --no-create-home --shell /usr/sbin/nologin edgekit

COPY --chmod=755 bundles/ {home}/

ENV PATH=/usr/local/lib/edgekit/bin:$PATH
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
USER {user}:{user}
WORKDIR /tmp
EXPOSE {port}
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \\
  CMD ["python", "-c", "{health}"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["edgekit", "serve"]
CMD [{command}]
"""

_HEALTH = (
    "import urllib.request as u; "
    "u.urlopen('http://127.0.0.1:{port}/v2/health/ready', timeout=2).read()"
)

_README = """\
pip looks here first. Until an index has edgekit {edgekit}, put its wheel here:

    python -m build --wheel -o . /path/to/edgekit's/source
"""


def made(facts: Facts, wishes: Wishes) -> Made:
    """``Dockerfile``, ``compose.yaml``, ``bundles/`` and ``wheels/`` for edgekit's own wheel.

    Raises:
        UnsupportedError: the artifact's runtime is not for Linux.
    """
    image = wishes.image or f"edgekit-{facts.label}:latest"
    command = [
        facts.argument(f"{HOME}/{facts.stored}"),
        "--host",
        "0.0.0.0",
        "--port",
        str(wishes.port),
    ]
    command += ["--artifact", facts.artifact.id]
    command += ["--linger-s", str(LINGER_S), "--grace-s", str(GRACE_S)]
    dockerfile = _DOCKERFILE.format(
        name=facts.name,
        version=facts.version,
        digest=facts.digest,
        edgekit=edgekit.__version__,
        image=image,
        packages=" ".join(f"'{wheel}'" for wheel in wheels(facts)),
        user=USER,
        home=HOME,
        port=wishes.port,
        health=_HEALTH.format(port=wishes.port),
        command=", ".join(f'"{word}"' for word in command),
    )
    files: dict[str, bytes | Path] = {
        "Dockerfile": dockerfile.encode(),
        "compose.yaml": _compose(facts, wishes, image),
        ".dockerignore": b"*\n!bundles\n!wheels\n",
        "wheels/README": _README.format(edgekit=edgekit.__version__).encode(),
    }
    files |= facts.copies("bundles")
    notes = (
        "docker compose up --build; the image was not built here",
        f"wheels/README says where edgekit {edgekit.__version__} comes from",
        "no keys are set: compose.yaml says how",
    )
    return Made(files, notes)


def wheels(facts: Facts) -> list[str]:
    """What pip is to install: edgekit's server, the runtime as it is installed here, and what reads
    pictures where the bundle takes them.

    Raises:
        UnsupportedError: the runtime is not for Linux.
    """
    target = facts.artifact.target
    if target not in _WHEELS:
        raise UnsupportedError(f"artifact {facts.artifact.id!r} is for {target}: not on Linux")
    least = facts.artifact.requires.get("min_version")
    found = [f"edgekit[serve]=={edgekit.__version__}", _pinned(_WHEELS[target], least)]
    if facts.pictures:
        found.append(_pinned("pillow", None))
    return found


def _pinned(name: str, least: str | None) -> str:
    try:
        return f"{name}=={version(name)}"
    except PackageNotFoundError:
        return name if least is None else f"{name}>={least}"


def _compose(facts: Facts, wishes: Wishes, image: str) -> bytes:
    service: dict[str, Any] = {
        "build": ".",
        "image": image,
        # Reached from this machine only, until keys and TLS are set.
        "ports": [f"127.0.0.1:{wishes.port}:{wishes.port}"],
        "read_only": True,
        "tmpfs": [f"/tmp:rw,noexec,nosuid,nodev,size={SCRATCH.lower()},mode=1777"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "pids_limit": 512,
        "mem_limit": "4g",
        "stop_grace_period": f"{GRACE_S + LINGER_S + 10}s",
        "restart": "unless-stopped",
    }
    comment = (
        f"docker compose up --build\n"
        "\n"
        f"Keys: a file of lines NAME KEY, owned by {USER} and with mode 600, mounted by\n"
        '  volumes: ["./keys:/run/secrets/edgekit-keys:ro"]\n'
        "and named by a command: the Dockerfile's CMD and --keys /run/secrets/edgekit-keys."
    )
    return to_yaml({"services": {facts.label: service}}, comment=comment)

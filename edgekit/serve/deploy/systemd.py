"""systemd: a hardened unit that runs the server as a user of its own."""

from __future__ import annotations

from pathlib import Path

import edgekit
from edgekit.serve.deploy.docker import GRACE_S, LINGER_S, wheels
from edgekit.serve.deploy.facts import Facts, Made, Wishes

__all__ = ["made"]

_HOME = "/var/lib/edgekit-bundles"

_UNIT = """\
# Model {name}, version {version}, bundle
# {digest}.
# Written by edgekit {edgekit}. As root:
#
#   python3 -m venv /usr/local/lib/edgekit
#   /usr/local/lib/edgekit/bin/pip install {packages}
#   mkdir -p {home} && cp -r bundles/. {home}/
#   cp {unit} /etc/systemd/system/ && systemctl daemon-reload
#   systemctl enable --now {unit}
#
# Another bundle: put it in the place of this one, then systemctl reload {unit}
# Keys: LoadCredential=keys:/etc/edgekit/keys below, and --keys ${{CREDENTIALS_DIRECTORY}}/keys

[Unit]
Description=edgekit serve: {name}
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
ExecStart=/usr/local/lib/edgekit/bin/edgekit serve {command}
ExecReload=/bin/kill -HUP $MAINPID
Environment=OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1
KillMode=mixed
TimeoutStopSec={stop}
Restart=on-failure
RestartSec=2

DynamicUser=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077
# MemoryDenyWriteExecute stays off: the runtimes compile kernels into memory and run them.

[Install]
WantedBy=multi-user.target
"""


def made(facts: Facts, wishes: Wishes) -> Made:
    """``edgekit-NAME.service``, with the bundle beside it in ``bundles/``.

    Raises:
        UnsupportedError: the artifact's runtime is not for Linux.
    """
    unit = f"edgekit-{facts.label}.service"
    command = (
        f"{facts.argument(f'{_HOME}/{facts.stored}')} --host {wishes.host} --port {wishes.port}"
    )
    command += f" --artifact {facts.artifact.id} --linger-s {LINGER_S} --grace-s {GRACE_S}"
    text = _UNIT.format(
        name=facts.name,
        version=facts.version,
        digest=facts.digest,
        edgekit=edgekit.__version__,
        packages=" ".join(f"'{wheel}'" for wheel in wheels(facts)),
        home=_HOME,
        unit=unit,
        command=command,
        stop=GRACE_S + LINGER_S + 10,
    )
    files: dict[str, bytes | Path] = {unit: text.encode()}
    files |= facts.copies("bundles")
    notes = (
        f"the head of {unit} says how it is installed; it was not started here",
        "no keys are set: the unit says how",
    )
    return Made(files, notes)

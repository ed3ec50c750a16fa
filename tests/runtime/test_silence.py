"""Nothing that edgekit runs reports to a vendor how it is used."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

# OpenVINO's wheel sends its reports from processes that it forks.
CODE = """
    import os, sys

    forks = []
    os.register_at_fork(before=lambda: forks.append(1))

    import torch
    import edgekit.runtime.session_openvino
    from edgekit.targets import find

    find("openvino")
    import openvino

    layer = torch.nn.Linear(4, 4).eval()
    openvino.convert_model(torch.export.export(layer, (torch.zeros(1, 4),)))
    print(len(forks), sys.modules["openvino_telemetry"])
"""


@pytest.mark.runtime
def test_openvino_reports_no_import_and_no_conversion() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(CODE)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["0", "None"]

"""The device side needs numpy and the runtime's own wheel: proved by taking all else away."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What each runtime's own wheel asks for (its Requires-Dist), as module names.
WHEELS = {
    "null": set(),
    "onnxruntime": {"onnxruntime", "flatbuffers", "packaging", "google"},
    "openvino": {"openvino", "openvino_telemetry"},
    "tflite": {
        "ai_edge_litert",
        "backports",
        "flatbuffers",
        "google",
        "ml_dtypes",
        "tqdm",
        "typing_extensions",
    },
}

# What a device does with a bundle; everything it imports on the way is refused if not allowed.
DEVICE = """
    import sys

    from edgekit.runtime import Bundle

    with Bundle.open(sys.argv[1]) as bundle:
        session = bundle.session(bundle.artifact(sys.argv[2]))
        check = bundle.check_golden(session)
        session.close()
    assert check.passed, check
    loaded = {name.partition(".")[0] for name in sys.modules}
    print(check.n, *sorted(loaded & {"torch", "click", "pydantic", "rich", "jsonschema", "PIL"}))
"""

HOOK = """
    import sys

    ALLOWED = set(sys.stdlib_module_names) | {"numpy"} | set(%(wheel)r)
    OURS = {"runtime", "signature", "metrics", "errors", "names"}

    class Refuse:
        def find_spec(self, name, path=None, target=None):
            parts = name.split(".")
            ours = parts[0] == "edgekit" and (len(parts) == 1 or parts[1] in OURS)
            if not ours and parts[0] not in ALLOWED:
                raise ModuleNotFoundError(f"{name} is not on the device", name=name)

    # Whatever the interpreter's own start-up brought along (editable installs) is gone too.
    for name in [n for n in sys.modules if n.partition(".")[0] not in ALLOWED | {"__main__"}]:
        del sys.modules[name]
    sys.meta_path.insert(0, Refuse())
"""


def run(python: str, code: str, *arguments: str) -> str:
    """Standard output of a script; its error output becomes the failure's message."""
    done = subprocess.run(
        [python, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_a_bundle_runs_with_numpy_alone(null_bundle: Path) -> None:
    code = textwrap.dedent(HOOK % {"wheel": WHEELS["null"]}) + textwrap.dedent(DEVICE)
    assert run(sys.executable, code, str(null_bundle), "null-fp32") == "5\n"


ROUTED = """
    import sys

    from edgekit.runtime import Bundle, Cloud, Policy, Router

    with Bundle.open(sys.argv[1]) as bundle, Cloud("http://127.0.0.1:1", "m") as cloud:
        policy = Policy(min_confidence=1.0, otherwise="cloud")
        feeds = {name: value[:1] for name, value in bundle.golden()[0].items()}
        with Router(bundle, cloud, policy, artifact="null-fp32") as router:
            print(router.answer(feeds).why)
"""


def test_a_router_runs_with_numpy_alone(null_bundle: Path) -> None:
    code = textwrap.dedent(HOOK % {"wheel": WHEELS["null"]}) + textwrap.dedent(ROUTED)
    assert run(sys.executable, code, str(null_bundle)) == "cloud-failed\n"


def test_the_hook_refuses_what_is_not_on_the_device() -> None:
    code = textwrap.dedent(HOOK % {"wheel": WHEELS["null"]})
    for module in ("click", "rich.console", "edgekit.cli.main", "edgekit.bench.measure"):
        with pytest.raises(AssertionError, match="is not on the device"):
            run(sys.executable, f"{code}\nimport {module}")


@pytest.mark.runtime
@pytest.mark.parametrize("target", ["tflite", "openvino", "onnxruntime"])
def test_a_bundle_runs_with_numpy_and_the_runtimes_wheel(net_bundle: Path, target: str) -> None:
    code = textwrap.dedent(HOOK % {"wheel": WHEELS[target]}) + textwrap.dedent(DEVICE)
    assert run(sys.executable, code, str(net_bundle), f"{target}-fp32") == "1\n"


@pytest.mark.slow
@pytest.mark.runtime
def test_a_clean_environment_needs_the_wheel_numpy_and_onnxruntime(
    net_bundle: Path, tmp_path: Path
) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path / "dist"), str(ROOT)], check=True)
    (wheel,) = (tmp_path / "dist").glob("edgekit-*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, "--no-deps", str(wheel)], check=True)
    pins = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*install, *pins, "numpy", "onnxruntime"], check=True)
    assert run(python, DEVICE, str(net_bundle), "onnxruntime-fp32") == "1\n"
    absent = """
        import importlib.util
        names = ["torch", "click", "pydantic", "rich", "jsonschema", "openvino", "ai_edge_litert"]
        assert [n for n in names if importlib.util.find_spec(n)] == []

        from edgekit.errors import MissingDependency
        from edgekit.runtime.session import preload
        try:
            preload("tflite")
        except MissingDependency as error:
            print(error.hint)
    """
    assert run(python, absent) == "pip install ai-edge-litert\n"

"""The command's frame: lazy verbs, one exit code and one document per outcome, honest streams."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import click
import numpy as np
import pytest

from edgekit import errors, schemas
from edgekit.cli import _output
from edgekit.cli.main import VERBS, main
from edgekit.names import EXIT_CODES

HEAVY = (
    "ai_edge_litert",
    "jax",
    "litert_torch",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "pydantic",
    "rich",
    "torch",
    "torchao",
    "torchvision",
    "transformers",
)


def install_verb(monkeypatch: pytest.MonkeyPatch, body: Callable[[], object]) -> None:
    """Adds a verb named `probe` that does ``body``."""

    @click.command()
    @_output.json_option
    @_output.verbosity_options
    def command(as_json: bool) -> object:
        return body()

    module = types.ModuleType("edgekit_probe_verb")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(VERBS, "probe", (f"{module.__name__}:command", "A verb of this test."))


def raiser(error: BaseException) -> Callable[[], object]:
    def body() -> object:
        raise error

    return body


def run(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgekit.cli.main", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def modules_after(code: str) -> set[str]:
    """The modules that a fresh interpreter holds after ``code``, whose own output is dropped."""
    script = (
        "import contextlib, io, json, sys\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"    {code}\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


# -- laziness -------------------------------------------------------------------------------------


def test_help_imports_no_verb_and_nothing_heavy() -> None:
    loaded = modules_after("from edgekit.cli.main import main; assert main(['--help']) == 0")
    assert "click" in loaded
    assert not loaded & set(HEAVY)
    verbs = {place.partition(":")[0] for place, _ in VERBS.values()}
    assert not loaded & verbs


@pytest.mark.parametrize("verb", [v for v in VERBS])
def test_the_help_of_a_verb_imports_no_framework(verb: str) -> None:
    loaded = modules_after(f"from edgekit.cli.main import main; assert main([{verb!r}, '-h']) == 0")
    assert not loaded & {name for name in HEAVY if name not in ("numpy", "pydantic", "rich")}


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for verb, (_, text) in VERBS.items():
        assert verb in out
        assert text.split()[0] in out


@pytest.mark.parametrize("verb", [v for v in VERBS])
def test_every_verb_of_the_table_is_a_command_that_explains_itself(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "--help"]) == 0
    assert f"edgekit {verb}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from edgekit import __version__

    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


# -- errors and exit codes ------------------------------------------------------------------------

OURS = [getattr(errors, name) for name in errors.__all__ if name != "EdgekitError"]


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_an_edgekit_error_gives_its_code_and_one_document(
    kind: type[errors.EdgekitError],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install_verb(monkeypatch, raiser(kind("the culprit", hint="do this")))
    assert main(["probe", "--json"]) == kind.exit_code
    out, err = capsys.readouterr()
    schemas.validate(json.loads(out))
    assert json.loads(out) == {
        "schema": "edgekit.error/1",
        "error": {
            "kind": kind.__name__,
            "message": "the culprit",
            "hint": "do this",
            "exit_code": kind.exit_code,
        },
    }
    assert err == "edgekit: error: the culprit\n  do this\n"
    assert kind.exit_code in EXIT_CODES


def test_without_json_an_error_writes_nothing_to_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_verb(monkeypatch, raiser(errors.BadData("12 of 8 samples")))
    assert main(["probe"]) == 7
    assert capsys.readouterr() == ("", "edgekit: error: 12 of 8 samples\n")


def test_a_gate_that_fails_after_the_result_leaves_one_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def body() -> object:
        _output.emit({"schema": "edgekit.probe/1", "passed": False}, True, str)
        raise errors.GateFailed("drop is 2.0 points, the limit is 1.0")

    install_verb(monkeypatch, body)
    assert main(["probe", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == {"schema": "edgekit.probe/1", "passed": False}
    assert "drop is 2.0 points" in err


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EPERM]
)
def test_no_space_and_no_permission_are_storage_errors(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_verb(monkeypatch, raiser(OSError(number, os.strerror(number), "bundle/manifest.json")))
    assert main(["probe", "--json"]) == 8
    document = json.loads(capsys.readouterr().out)
    assert document["error"]["kind"] == "StorageError"
    assert "bundle/manifest.json" in document["error"]["message"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort(), EOFError()], ids=repr)
def test_an_interruption_is_130(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_verb(monkeypatch, raiser(error))
    assert main(["probe", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "Interrupted"


@pytest.mark.parametrize(
    "error",
    [ValueError("odd"), FileNotFoundError(2, "No such file", "x"), AssertionError()],
    ids=repr,
)
def test_anything_else_is_a_bug_without_a_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("EDGEKIT_DEBUG", raising=False)
    install_verb(monkeypatch, raiser(error))
    assert main(["probe", "--json"]) == 70
    out, err = capsys.readouterr()
    assert "this is a bug in edgekit" in err
    assert type(error).__name__ in err
    assert "Traceback" not in err
    assert json.loads(out)["error"]["exit_code"] == 70


@pytest.mark.parametrize("way", ["option", "variable"])
def test_the_traceback_is_there_for_the_asking(
    way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if way == "variable":
        monkeypatch.setenv("EDGEKIT_DEBUG", "1")
    install_verb(monkeypatch, raiser(ValueError("odd")))
    assert main(["probe", *(["-v"] if way == "option" else [])]) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_missing_package_names_the_install_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_verb(monkeypatch, raiser(ModuleNotFoundError("no", name="litert_torch.backend")))
    assert main(["probe"]) == 3
    err = capsys.readouterr().err
    assert "litert_torch is not installed" in err
    assert "pip install 'edgekit[all]'" in err


def test_a_module_of_ours_that_is_missing_is_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_verb(monkeypatch, raiser(ModuleNotFoundError("no", name="edgekit.nothing")))
    assert main(["probe"]) == 70
    assert "bug" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [["exprot"], ["--no-such-option"], ["probe", "--no-such-option"], ["probe", "too", "many"]],
    ids=" ".join,
)
def test_a_wrong_request_is_2(
    args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_verb(monkeypatch, lambda: None)
    assert main([*args, "--json"]) == 2
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["error"]["kind"] == "UsageError"
    assert document["error"]["message"] in err
    assert "--help" in document["error"]["hint"]


def test_a_misspelt_verb_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exprot"]) == 2
    assert "Did you mean 'export'?" in capsys.readouterr().err


def test_no_verb_shows_the_help_as_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Usage: edgekit")
    assert "error:" not in err


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (3, 3), (True, 0), ("x", 0)])
def test_a_whole_number_that_a_verb_returns_is_the_exit_code(
    result: object, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_verb(monkeypatch, lambda: result)
    assert main(["probe"]) == code


def test_a_verb_may_exit_through_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    install_verb(monkeypatch, lambda: click.get_current_context().exit(1))
    assert main(["probe"]) == 1


def test_json_after_the_double_dash_is_an_argument(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_verb(monkeypatch, lambda: None)
    assert main(["probe", "--", "--json"]) == 2
    assert capsys.readouterr().out == ""


# -- streams --------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_stdout_is_8() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "edgekit.cli.main", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 8
    assert "No space left" in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_reader_that_leaves_is_no_bug() -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import time; from edgekit.cli.main import main; time.sleep(0.3);"
            "import sys; sys.exit(main(['--help']))",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 130


def test_a_reader_that_leaves_does_not_change_the_verdict() -> None:
    script = (
        "import sys, time\n"
        "from edgekit.cli import _output\n"
        "time.sleep(0.3)\n"
        "_output.emit({'schema': 'x/1', 'rows': list(range(100000))}, True, str)\n"
        "sys.exit(1)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=-1, stderr=-1)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


def test_a_broken_pipe_to_something_else_is_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_verb(monkeypatch, raiser(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    assert main(["probe"]) == 70
    assert "BrokenPipeError" in capsys.readouterr().err


def test_ctrl_c_is_130() -> None:
    script = (
        "import sys, time, types, click\n"
        "from edgekit.cli.main import VERBS, main\n"
        "module = types.ModuleType('m')\n"
        "@click.command()\n"
        "def command():\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(30)\n"
        "module.command = command\n"
        "sys.modules['m'] = module\n"
        "VERBS['sleep'] = ('m:command', '')\n"
        "sys.exit(main(['sleep']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=-1,
        stderr=-1,
        text=True,
        # Tests that run in the background of a shell inherit a Ctrl-C that is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err


# -- documents, tables, notes ---------------------------------------------------------------------


def test_numbers_json_has_not_become_null(capsys: pytest.CaptureFixture[str]) -> None:
    document = {
        "schema": "x/1",
        "nan": math.nan,
        "list": [math.inf, -math.inf, 1.5],
        "numpy": np.float32("nan"),
        "array": np.array([[1.0, np.nan], [np.inf, 2.0]]),
        "count": np.int64(3),
        "flag": np.bool_(True),
        "path": PurePosixPath("a/b"),
        "pair": (1, None),
    }
    _output.emit(document, True, str)
    out = capsys.readouterr().out
    assert "NaN" not in out
    assert "Infinity" not in out
    assert json.loads(out) == {
        "schema": "x/1",
        "nan": None,
        "list": [None, None, 1.5],
        "numpy": None,
        "array": [[1.0, None], [None, 2.0]],
        "count": 3,
        "flag": True,
        "path": "a/b",
        "pair": [1, None],
    }


def test_equal_documents_are_equal_bytes() -> None:
    one = _output.document_json({"b": 1, "a": {"z": "ä", "y": 0.1}})
    two = _output.document_json({"a": {"y": 0.1, "z": "ä"}, "b": 1})
    assert one == two
    assert one.isascii()
    assert one.endswith("}\n")


@pytest.mark.parametrize(
    ("document", "where"), [({"a": [object()]}, "$.a[0]"), ({"a": {1: 2}}, "$.a")]
)
def test_what_json_cannot_hold_is_refused_by_its_place(
    document: dict[str, Any], where: str
) -> None:
    with pytest.raises(TypeError) as caught:
        _output.document_json(document)
    assert str(caught.value).startswith(where)


def test_a_table_is_aligned_plain_text() -> None:
    text = _output.table(["name", "ms"], [["mobilenet", 4.5], ["cnn", None], ["x", 12]])
    assert text.splitlines() == [
        "name        ms",
        "mobilenet  4.5",
        "cnn          -",
        "x           12",
    ]
    assert _output.table(["name", "ms"], []) == "name  ms"


@pytest.mark.parametrize(
    ("flags", "said"), [([], ["step"]), (["-q"], []), (["-v"], ["step", "why"])]
)
def test_notes_go_to_stderr_as_loud_as_asked(
    flags: list[str],
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def body() -> None:
        _output.note("step")
        _output.note("why", verbose=True)

    install_verb(monkeypatch, body)
    assert main(["probe", *flags]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.split() == said


def test_off_a_terminal_progress_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    _output.reset()
    with _output.progress("calibrating", total=3) as advance:
        for _ in range(3):
            advance(1)
    assert capsys.readouterr() == ("", "calibrating\n")


@pytest.mark.parametrize("plain", [False, True], ids=["colour", "NO_COLOR"])
def test_on_a_terminal_progress_draws_unless_no_color(plain: bool) -> None:
    import pty

    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")}
    environment |= {"TERM": "xterm-256color"} | ({"NO_COLOR": "1"} if plain else {})
    script = (
        "from edgekit.cli import _output\n"
        "with _output.progress('calibrating', total=2) as advance:\n"
        "    advance(1); advance(1)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stderr=theirs, stdout=subprocess.PIPE, env=environment
    )
    out, _ = process.communicate(timeout=20)
    os.close(theirs)
    drawn = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:
            break
        if not piece:
            break
        drawn += piece
    os.close(ours)
    assert process.returncode == 0
    assert out == b""
    assert b"calibrating" in drawn
    assert (b"\x1b[" in drawn) is not plain


def test_a_console_off_a_terminal_writes_no_escapes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    _output.reset()
    _output.console().print("[bold red]hot[/]")
    assert capsys.readouterr().err == "hot\n"

"""The `edgekit` command: finds the verb, runs it, and turns every error into its exit code.

A verb is one file beside this one that exposes a click command named ``command``, and one line in
`VERBS`. Importing this module, and ``edgekit --help``, import no verb: the short help stands here.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

import click

from edgekit import __version__, cores
from edgekit.cli import _output
from edgekit.errors import EdgekitError, MissingDependency, StorageError
from edgekit.names import install_command, unknown

__all__ = ["VERBS", "cli", "main"]

VERBS: Final[dict[str, tuple[str, str]]] = {
    "export": (
        "edgekit.cli.export:command",
        "Quantize a model once and export it for devices, each artifact verified.",
    ),
    "quantize": (
        "edgekit.cli.quantize:command",
        "Make a model's quantization plan, and show what each layer costs.",
    ),
    "verify": (
        "edgekit.cli.verify:command",
        "Run a bundle's artifacts in their runtimes against the plan.",
    ),
    "bench": ("edgekit.cli.bench:command", "Measure latency, load time and memory of artifacts."),
    "estimate": (
        "edgekit.cli.estimate:command",
        "Estimate latency and memory on a device that is not here; rank schemes and threads.",
    ),
    "report": (
        "edgekit.cli.report:command",
        "Make one page of HTML about a run, an export or a bundle.",
    ),
    "inspect": (
        "edgekit.cli.inspect:command",
        "Show what is in a bundle or a model file, and where it would run.",
    ),
    "run": (
        "edgekit.cli.run:command",
        "Run a recipe: train, distil, prune, quantize, export, cached stage by stage.",
    ),
    "recipes": ("edgekit.cli.recipes:command", "List, show and copy the recipes that come along."),
    "bundle": ("edgekit.cli.bundle:command", "Compare two bundles; write client code for one."),
    "serve": (
        "edgekit.cli.serve:command",
        "Serve bundles over the Open Inference Protocol.",
    ),
    "telemetry": (
        "edgekit.cli.telemetry:command",
        "Receive what a fleet's devices send, and report on it.",
    ),
    "devices": ("edgekit.cli.devices:command", "List, show and check device profiles."),
    "targets": ("edgekit.cli.targets:command", "List targets, their schemes and delegates."),
    "doctor": (
        "edgekit.cli.doctor:command",
        "Check what is installed and that each runtime really runs.",
    ),
}
"""Every verb: where its command is, as ``module:attribute``, and its one line of help."""

_NO_SPACE_OR_PERMISSION = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
)
_INTERRUPTED = 130


class LazyGroup(click.Group):
    """A group whose commands are the `VERBS`, each imported when it is invoked."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order of the table, which is the order of work."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the verb's module and gives its command; ``None`` for an unknown verb."""
        if cmd_name not in VERBS:
            return None
        module, _, attribute = VERBS[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command), f"{module}:{attribute} is no click command"
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, but a misspelt verb is answered with the nearest one."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise click.UsageError(unknown("verb", args[0], VERBS), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the verbs from the table, where click would import every one of them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])


@click.group(
    cls=LazyGroup,
    subcommand_metavar="VERB [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="edgekit")
@_output.verbosity_options
def cli() -> None:
    """One model, one quantization, every mobile runtime, and a proof for each."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code, out of `edgekit.names.EXIT_CODES`.

    Results go to stdout, everything else to stderr. With ``--json`` an error too is one document
    on stdout, ``edgekit.error/1``, unless the verb had already written its own.

    Args:
        argv: the arguments without the program's name; ``sys.argv[1:]`` if not given.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    _output.reset()
    cores.spin_briefly(os.environ)
    cores.collect_seldom()
    try:
        code = _invoke(args)
    except Exception as error:
        code = _report(error, args)
    except KeyboardInterrupt:
        code = _report(click.Abort(), args)
    return _flush(code)


def _invoke(args: list[str]) -> int:
    """Runs the verb; a verb that returns a whole number, or exits with one, sets the exit code."""
    if "_EDGEKIT_COMPLETE" in os.environ:
        cli.main(args, prog_name="edgekit")
    # Not cli.main(): it takes any broken pipe, a worker's included, for a reader that has left.
    try:
        with cli.make_context("edgekit", args) as context:
            result = cli.invoke(context)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    return result if type(result) is int else 0


def _report(error: Exception, args: list[str]) -> int:
    """Writes what went wrong and returns the exit code for it."""
    options = args[: args.index("--")] if "--" in args else args
    as_json = "--json" in options
    if isinstance(error, BrokenPipeError) and _output.reader_left():
        return _INTERRUPTED
    if isinstance(error, click.Abort | EOFError):
        return _tell("Interrupted", "interrupted", "", _INTERRUPTED, as_json)
    if isinstance(error, click.ClickException):
        message, hint = error.format_message(), ""
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            _output.write_error(f"{message}\n")
            return 2
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f"see '{error.ctx.command_path} --help'"
        return _tell("UsageError", message, hint, 2, as_json)
    known = _as_edgekit_error(error)
    if _output.debugging(options):
        import traceback

        _output.write_error("".join(traceback.format_exception(error)))
    if known is not None:
        kind = type(known).__name__
        return _tell(kind, known.message, known.hint, known.exit_code, as_json)
    what = f"{type(error).__name__}: {error}".removesuffix(": ")
    hint = "run it again with -v for the traceback, and report it with 'edgekit doctor --json'"
    return _tell("Bug", f"this is a bug in edgekit: {what}", hint, 70, as_json)


def _as_edgekit_error(error: Exception) -> EdgekitError | None:
    """The error of ours that ``error`` is, or stands for; ``None`` for a bug."""
    if isinstance(error, EdgekitError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        package = error.name.partition(".")[0]
        if package != "edgekit":
            return MissingDependency(f"{package} is not installed", hint=install_command("all"))
    if isinstance(error, OSError) and error.errno in _NO_SPACE_OR_PERMISSION:
        where = f"{error.filename}: " if error.filename is not None else ""
        return StorageError(
            f"{where}{error.strerror}", hint="free some space there, or choose another place"
        )
    return None


def _tell(kind: str, message: str, hint: str, code: int, as_json: bool) -> int:
    """One error on stderr and, for ``--json``, as the one document on stdout."""
    tail = f"\n  {hint}" if hint else ""
    _output.write_error(f"edgekit: error: {message}{tail}\n")
    if as_json and not _output.emitted():
        error = {"kind": kind, "message": message, "hint": hint, "exit_code": code}
        try:
            _output.emit({"schema": "edgekit.error/1", "error": error}, True, str)
        except OSError:
            # stdout is what failed; stderr has the message.
            _output.abandon(sys.stdout)
    return code


def _flush(code: int) -> int:
    """Empties both streams here, where a full disk or a closed pipe can still be answered."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            _output.abandon(stream)
        except OSError as error:
            _output.abandon(stream)
            if code == 0:
                code = _report(error, [])
    return code


if __name__ == "__main__":
    sys.exit(main())

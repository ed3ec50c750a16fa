"""A command that takes arguments of its own, and has subcommands beside them.

``edgekit serve BUNDLE...`` serves and ``edgekit serve tune BUNDLE`` tunes. click's groups take no
list of arguments in front of a subcommand, so the first argument decides here.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar

import click

__all__ = ["WithSubcommands"]


class WithSubcommands(click.Command):
    """A command whose first argument may name a subcommand, which is imported when it is invoked.

    A file of a subcommand's name is reached as ``./NAME``.

    Attributes:
        subcommands: by name: where the click command is, as ``module:attribute``, and its one line
            of help.
    """

    subcommands: ClassVar[Mapping[str, tuple[str, str]]] = {}

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """As click does it, or the subcommand's context where one is named."""
        if not args or args[0] not in self.subcommands:
            return super().make_context(info_name, args, parent, **extra)
        module, _, attribute = self.subcommands[args[0]][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command), f"{module}:{attribute} is no click command"
        name = f"{info_name} {args[0]}"
        return command.make_context(name, args[1:], parent, **extra)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the subcommands below the options."""
        if self.subcommands:
            with formatter.section("Subcommands"):
                rows = [(name, text) for name, (_, text) in self.subcommands.items()]
                formatter.write_dl(rows)
        super().format_epilog(ctx, formatter)

"""Keeps what libraries and a user's own code say out of a verb's streams."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator

from edgekit.cli import _output

__all__ = ["subdued"]


@contextlib.contextmanager
def subdued() -> Iterator[None]:
    """While frameworks and a user's own code run.

    What they print goes to stderr, as stdout is for the result alone. Their warnings, and log
    records up to that level, go nowhere, unless tracebacks are asked for.
    """
    with contextlib.redirect_stdout(sys.stderr):
        if _output.debugging([]):
            yield
            return
        before = logging.root.manager.disable
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.disable(max(before, logging.WARNING))
            try:
                yield
            finally:
                logging.disable(before)

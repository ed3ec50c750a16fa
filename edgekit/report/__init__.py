"""Reports: one page of HTML out of a run, an export or a bundle, and the evidence for it.

A stage of a recipe keeps what a model answers by `collect`; `edgekit report RUN` makes the page
(`edgekit.report.page`).
"""

from __future__ import annotations

from edgekit.report.evidence import collect

__all__ = ["collect"]

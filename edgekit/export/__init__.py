"""Export: one model to every runtime of some devices, proven, measured and packed.

`export_bundle` is the road through the house: calibrate a plan, let each target render and convert
it in a process of its own, run every artifact in its real runtime against the plan, measure it
beside its float twin, judge the gates, and pack what passed. Every step is kept in the store, so
that the same request does nothing twice.
"""

from __future__ import annotations

from edgekit.export.request import ExportRequest
from edgekit.export.run import ExportResult, export_bundle

__all__ = ["ExportRequest", "ExportResult", "export_bundle"]

"""Parity: does a candidate give the answers of its reference? The pure part of verification.

`ParityAccumulator` is fed reference and candidate outputs sample by sample and judges them by a
`Tolerance`; `extreme_probes` are inputs beyond any evaluation set; `check_repeatable` runs the
same input again and again. numpy only: nothing here knows a runtime.
"""

from edgekit.parity.calibration import calibration_checks
from edgekit.parity.gates import TOLERANCES, Check, Tolerance
from edgekit.parity.judge import OutputStats
from edgekit.parity.mutants import Mutant, known_bad_mutants
from edgekit.parity.probes import Probe, check_repeatable, extreme_feeds, extreme_probes
from edgekit.parity.report import ParityAccumulator, ParityReport, self_test

__all__ = [
    "TOLERANCES",
    "Check",
    "Mutant",
    "OutputStats",
    "ParityAccumulator",
    "ParityReport",
    "Probe",
    "Tolerance",
    "calibration_checks",
    "check_repeatable",
    "extreme_feeds",
    "extreme_probes",
    "known_bad_mutants",
    "self_test",
]

"""Calibration and evaluation sets: one sample at a time, checked against the model's signature.

    calib, evaluation = load_pair("pictures.zip", None, signature=s, preprocess=p)
    for i in range(len(evaluation)):
        feeds, label = evaluation.feed(i), evaluation.label(i)

**Calibration never touches evaluation.** A source with splits of its own keeps them: ``train/`` and
``test/`` in a folder or zip of pictures or sounds, Speech Commands' lists, or a function that takes
``split``. Any other source that serves both is divided by a hash of each sample (a file's relative
name, a text, a row's bytes): a quarter for calibration, the rest for evaluation. The division
depends on nothing else, so it is the same in every run, and stays put when samples are added.
"""

from __future__ import annotations

from edgekit.data.loading import load, load_pair, same_source
from edgekit.data.samples import ArraySamples, Role, Samples, picture_of, sound_of, text_of

__all__ = [
    "ArraySamples",
    "Role",
    "Samples",
    "load",
    "load_pair",
    "picture_of",
    "same_source",
    "sound_of",
    "text_of",
]

"""A bundle's facts in words, for comments and the README."""

from __future__ import annotations

from edgekit.clients import _escape as escape
from edgekit.clients._facts import Facts
from edgekit.runtime.preprocess import AudioPreprocess, ImagePreprocess

__all__ = ["difference", "head", "resize_words", "sound_words"]


def head(facts: Facts) -> str:
    """Where a client comes from, in a few words that fit any comment."""
    bundle = escape.comment(f"{facts.name} {facts.version}")
    return f"Made by edgekit {escape.comment(facts.edgekit)} for the bundle {bundle}."


def resize_words(step: ImagePreprocess) -> str:
    """How pictures were resized, as a phrase that begins with a noun."""
    if step.resize == "none":
        return f"pictures of exactly {step.height} x {step.width} (height x width), never resized"
    how = f"{step.resize} resizing"
    how += (
        ", anti-aliased as Pillow does it"
        if step.antialias
        else (", as torch.nn.functional.interpolate does it (align_corners=False, no antialias)")
    )
    if step.resize_mode == "stretch":
        return f"{how}, to {step.height} x {step.width} (height x width)"
    side = step.resize_size or max(step.height, step.width)
    return f"{how}, the shorter side to {side}, and the central {step.height} x {step.width}"


def difference(step: ImagePreprocess) -> str:
    """What a resize by the system does otherwise."""
    if step.resize == "none":
        return "Nothing differs: no picture is resized."
    if step.resize == "nearest":
        return "Which of two equally near pixels is taken may differ."
    if step.antialias:
        return (
            "A system's filter is not widened where pictures shrink much, so fine patterns differ; "
            "shrink by steps of two or compute it as the Python client does where that matters."
        )
    return "Roundings differ, by a few units of 255."


def sound_words(step: AudioPreprocess) -> str:
    """How sounds become features, as a numbered list in Markdown."""
    other = "other rates are refused"
    if step.resample == "polyphase":
        other = "other rates are resampled as `scipy.signal.resample_poly` does"
    where = {
        "start": "the first are kept of more, zeros follow fewer",
        "middle": "the middle is kept of more, zeros stand on both sides of fewer",
    }[step.fit]
    begin = "the first begins at sample 0, none reaches beyond the end"
    if step.framing == "centered":
        begin = "the middle of the first is sample 0, the clip mirrored at its ends"
    mel = "2595 log10(1 + f / 700), HTK's" if step.scale == "htk" else "Slaney's"
    mean, std = (", ".join(map(repr, values)) for values in (step.mean, step.std))
    many = ", band by band" if max(len(step.mean), len(step.std)) > 1 else ""
    axes = {
        "NCHW": f"1, 1, {step.frames} frames, {step.mels} bands",
        "NHWC": f"1, {step.frames} frames, {step.mels} bands, 1",
        "NTC": f"1, {step.frames} frames, {step.mels} bands",
        "NCT": f"1, {step.mels} bands, {step.frames} frames",
    }[step.layout]
    lines = [
        "Samples of -1 to 1 (16-bit integers divided by 32768), the mean of all channels.",
        f"{step.sample_rate} Hz; {other}.",
        f"{step.samples} samples ({step.samples / step.sample_rate:g} s): {where}.",
        f"Frames of {step.window} samples every {step.hop}: {begin}. Each times a periodic Hann "
        f"window, then a Fourier transform of {step.fft}, "
        f"{'squared magnitudes' if step.power == 2 else 'magnitudes'}.",
        f"{step.mels} triangular bands from {step.fmin:g} to {step.top:g} Hz, evenly spaced on the "
        f"mel scale ({mel}), each with {'an area' if step.area else 'a peak'} of 1.",
        f"(ln(band + {step.log_offset!r}) - mean) / std{many}: mean {mean}; std {std}.",
        f"As float32 [{axes}].",
    ]
    listed = "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1))
    return (
        f"{listed}\n\nThe Python clients do this as edgekit does, from WAV files or samples; the "
        "others take the finished features."
    )

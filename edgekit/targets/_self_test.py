"""A one-layer round trip through a target: quantize, convert, load, run, compare."""

from __future__ import annotations

import time
from typing import Any

from edgekit.scratch import scratch


def self_test(name: str) -> dict[str, Any]:
    """Converts one convolution (or one linear layer for ``null``), runs it, compares with torch.

    Returns:
        ``{"ok", "detail", "seconds"}``; never raises.
    """
    start = time.perf_counter()
    try:
        detail = _round_trip(name)
        ok = True
    except Exception as error:
        ok, detail = False, f"{type(error).__name__}: {error}"
    return {"ok": ok, "detail": detail, "seconds": round(time.perf_counter() - start, 2)}


def _round_trip(name: str) -> str:
    import numpy as np
    import torch

    from edgekit.compress.dynamic import as_computed
    from edgekit.compress.graph import canonical, graph_module, program_digest
    from edgekit.compress.plan import QuantPlan
    from edgekit.compress.quantize import quantize
    from edgekit.compress.render import render
    from edgekit.compress.weights import quantize_weights
    from edgekit.names import CALIBRATED, WEIGHTS
    from edgekit.signature import Signature, TensorSpec
    from edgekit.targets import find, open_session, require_installed

    target = find(name)
    require_installed(target)
    torch.manual_seed(0)
    layer: torch.nn.Module
    shape: tuple[int, ...]
    if name == "null":
        layer, shape = torch.nn.Linear(8, 4), (1, 8)
    else:
        layer = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU())
        shape = (1, 3, 8, 8)
    x = torch.randn(shape)
    with torch.no_grad():
        program = canonical(torch.export.export(layer.eval(), (x,), strict=False))
        y = layer(x)
    signature = Signature((TensorSpec("x", tuple(shape)),), (TensorSpec("y", tuple(y.shape)),))
    worst = []
    for scheme in target.schemes:
        if scheme in WEIGHTS:
            plan = as_computed(graph_module(program), quantize_weights(program, scheme), target)
        elif scheme in CALIBRATED:
            plan = quantize(program, [(x,)], scheme=scheme)
        else:
            plan = QuantPlan("fp32", program_digest(program))
        with scratch("self-test") as folder:
            out = folder / f"one{target.suffix}"
            target.convert(program, plan, signature, out)
            session = open_session(target, out, signature, 1)
            got = session.run({"x": x.numpy()})["y"]
            session.close()
        with torch.no_grad():
            want = render(program, plan, "fake")(x).numpy()
        limit = 2.01 * plan.edges[-3].scale[0] if scheme in CALIBRATED else 1e-4
        error = float(np.abs(got - want).max())
        if not error <= limit:
            raise ValueError(f"{scheme}: off by {error:.3g}, allowed {limit:.3g}")
        worst.append(f"{scheme} within {error:.1e}")
    return ", ".join(worst)

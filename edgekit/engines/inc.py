"""Intel Neural Compressor: its PyTorch PT2E path with automatic tuning.

Version 3 quantizes torch programs only (it has no ONNX back end any more) and leaves a graph of
quantize and dequantize operators for `torch.compile`. Here that graph goes through edgekit's own
converters for OpenVINO and ONNX Runtime instead, so that it runs where the others run. LiteRT is
not among its targets: the graph has uint8 activations, which LiteRT's int8 kernels do not take.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.engines._common import check_quantized, labelled, samples, store_integers
from edgekit.scratch import scratch
from edgekit.signature import Signature

if TYPE_CHECKING:
    import torch

    from edgekit.engines import Feeds


class Inc:
    """The Neural Compressor engine."""

    id = "inc"
    extra = "inc"
    packages = ("neural-compressor", "prettytable", "torchao")
    targets = ("openvino", "onnxruntime")
    defaults: Mapping[str, Any] = {
        "autotune": True,
        "act_sym": [True, False],
        "act_algo": ["kl", "minmax"],
        "tolerable_loss": 0.0,
        "eval_samples": 32,
    }

    def quantize(
        self,
        program: torch.export.ExportedProgram,
        feeds: Feeds,
        signature: Signature,
        target: str,
        out: Path,
        settings: Mapping[str, Any],
    ) -> list[Path]:
        """See `edgekit.engines.Engine.quantize`.

        With ``autotune`` the configurations of ``act_sym`` x ``act_algo`` are tried in turn, and
        the one is kept whose outputs come closest to the float model's (cosine) over the first
        ``eval_samples`` calibration samples; labels are not needed. Tuning ends early at a loss of
        ``tolerable_loss``. Without it, the vendor's default configuration is taken.
        """
        import torch

        from edgekit import targets
        from edgekit.compress.graph import example_args, program_digest
        from edgekit.compress.plan import QuantPlan

        rows = samples(feeds)
        made = targets.find(target)
        targets.require_installed(made)
        with _scratch_directory():
            module = _quantized(program, rows, settings)
        check_quantized(self.id, module)
        if target == "onnxruntime":
            store_integers(module)
        with torch.no_grad():
            result = torch.export.export(module, example_args(program), strict=False)
        # It holds its quantization already: for the converter it is a program like any other.
        return made.convert(result, QuantPlan("fp32", program_digest(result)), signature, out)


def _quantized(
    program: torch.export.ExportedProgram,
    rows: list[tuple[torch.Tensor, ...]],
    settings: Mapping[str, Any],
) -> Any:
    import torch
    from neural_compressor.torch.quantization import (
        INT8StaticQuantConfig,
        TuningConfig,
        autotune,
        convert,
        get_default_static_config,
        prepare,
    )

    from edgekit.compress.graph import example_args, graph_module

    logging.getLogger("neural_compressor").setLevel(logging.ERROR)
    args = example_args(program)
    # What its own `export` would leave of a program: exported again, layers would lose their names.
    exported: Any = labelled(program)
    exported._exported, exported.dynamic_shapes = True, None
    with torch.no_grad():
        if not settings["autotune"]:
            prepared = prepare(exported, get_default_static_config(), example_inputs=args)
            _run(prepared, rows)
            return convert(prepared)
        few = rows[: settings["eval_samples"]]
        truth = [graph_module(program)(*feed) for feed in few]
        tries = list(itertools.product(settings["act_sym"], settings["act_algo"]))
        return autotune(
            exported,
            TuningConfig(
                config_set=[INT8StaticQuantConfig(act_sym=s, act_algo=a) for s, a in tries],
                tolerable_loss=settings["tolerable_loss"],
                max_trials=len(tries),
            ),
            eval_fn=lambda candidate: _closeness(candidate, few, truth),
            run_fn=lambda candidate: _run(candidate, rows),
            example_inputs=args,
        )


def _run(module: Any, rows: list[tuple[torch.Tensor, ...]]) -> None:
    for feed in rows:
        module(*feed)


def _closeness(module: Any, rows: list[tuple[torch.Tensor, ...]], truth: list[Any]) -> float:
    """Mean cosine between a module's outputs and the float model's, 1 for equal ones."""
    import torch

    total = 0.0
    with torch.no_grad():
        for feed, right in zip(rows, truth, strict=True):
            ours, theirs = _flat(module(*feed)), _flat(right)
            total += float(torch.nn.functional.cosine_similarity(ours, theirs, dim=0))
    return total / len(rows)


def _flat(result: Any) -> torch.Tensor:
    import torch

    tensors = result if isinstance(result, tuple | list) else (result,)
    return torch.cat([t.reshape(-1).double() for t in tensors])


@contextlib.contextmanager
def _scratch_directory() -> Iterator[None]:
    """A temporary working directory: the tuner leaves its history in the current one."""
    before = Path.cwd()
    with scratch("inc") as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


ENGINE = Inc()

"""The null target: a chain of linear layers in plain numpy, to test the house without a runtime."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import UnsupportedError
from edgekit.signature import Signature
from edgekit.targets import Placement, Stored

if TYPE_CHECKING:
    import torch

    from edgekit.compress.plan import QuantPlan

_FREE = ("aten.view.default", "aten.flatten.using_ints", "aten.reshape.default")


class Null:
    """Float multi-layer perceptrons only: flatten, linear, ReLU between."""

    id = "null"
    suffix = ".npz"
    extra = ""
    packages = ("numpy",)
    schemes = ("fp32",)
    delegates = ("cpu",)

    def convert(
        self,
        program: torch.export.ExportedProgram,
        plan: QuantPlan,
        signature: Signature,
        out: Path,
    ) -> list[Path]:
        """See `edgekit.targets.Target.convert`."""
        from edgekit.compress.graph import tensor_of
        from edgekit.compress.render import render

        if plan.edges:
            raise UnsupportedError("null: carries only fp32", hint="use --scheme fp32")
        module = render(program, plan, "fake")
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        order = ""
        for node in module.graph.nodes:
            if node.op != "call_function":
                continue
            name = str(node.target)
            if name == "aten.linear.default":
                weight, bias = (tensor_of(module, a) for a in (*node.args[1:], None)[:2])
                assert weight is not None
                index = len(arrays) // 2
                arrays[f"w{index}"] = weight.numpy().T.copy()
                zero = np.zeros(weight.shape[0], np.float32)
                arrays[f"b{index}"] = zero if bias is None else bias.numpy().copy()
                order += "L"
            elif name == "aten.relu.default":
                order += "R"
            elif name not in _FREE:
                raise UnsupportedError(f"null: no operator {name}", hint="use a real target")
        if not re.fullmatch("L(RL)*", order):
            raise UnsupportedError(
                "null: carries linear layers with a ReLU between each two, and nothing else",
                hint="use a real target",
            )
        np.savez(out, **arrays)  # type: ignore[arg-type]
        return [out]

    def inspect(self, path: Path) -> Placement:
        """One float operator per layer."""
        with np.load(path, allow_pickle=False) as data:
            layers = sum(name.startswith("w") for name in data.files)
            size = sum(int(data[name].nbytes) for name in data.files)
        return Placement(
            {"Linear": layers},
            layers,
            undelegated_ops=0,
            bytes_by_dtype={"float32": size},
            ops_by_dtype={"float": layers},
            layers={"float": layers},
        )

    def stored(self, path: Path) -> list[Stored]:
        """Nothing: the null target quantizes nothing."""
        return []


TARGET = Null()

"""Model: a torch module with its signature and preprocessing, frozen and ready to export.

Whatever a team arrives with becomes a `Model`. It runs in eval mode, takes its inputs as
positional tensors named in its signature, and can always give a `torch.export` program.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode

from edgekit.errors import BadData, EdgekitError, UnsupportedError, UsageError
from edgekit.model._adapter import adapt, adapt_output, flatten, output_names
from edgekit.model._program import check_agreement, export_module, hash_program, user_line
from edgekit.model._trace import trace_digest
from edgekit.runtime.preprocess import ImagePreprocess, Preprocess, TextPreprocess
from edgekit.signature import DTYPES, Signature, TensorSpec

__all__ = ["Model"]


@dataclass(frozen=True, eq=False)
class Model:
    """A torch module, its signature and its preprocessing.

    Attributes:
        module: in eval mode; takes ``signature.inputs`` by position. A module that arrives in
            train mode is copied, and the copy switched, so that the caller's own stays as it is.
        signature: named inputs and outputs with static shapes, batch first.
        preprocess: how a picture, a text or a sound becomes the inputs; None where they are ready.
        name: used for files and in messages.
        license: an SPDX identifier, where it is known.
        notes: things that a reader of the results has to know (such as random weights).
    """

    module: torch.nn.Module = field(repr=False)
    signature: Signature
    preprocess: Preprocess | None = None
    name: str = "model"
    license: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "module", _in_eval_mode(self.module))
        if not self.signature.inputs:
            raise BadData(f"model {self.name!r} has no inputs")
        if self.preprocess is not None:
            _check_fits(self.preprocess, self.signature, self.name)

    @classmethod
    def from_module(
        cls,
        module: torch.nn.Module,
        examples: Mapping[str, torch.Tensor],
        *,
        name: str = "model",
        preprocess: Preprocess | None = None,
        labels: Sequence[str] | None = None,
        input_layout: Mapping[str, str] | str | None = None,
        license: str | None = None,
        notes: Sequence[str] = (),
    ) -> Model:
        """A model out of a module, learning the outputs by running it once on the examples.

        Args:
            module: any module whose outputs are tensors, or sequences, dictionaries, named tuples
                or dataclasses of tensors. The last four are flattened to a tuple.
            examples: one example tensor per input, batch first, named after forward()'s
                parameters. Shapes and dtypes are taken from them; for integer inputs the largest
                allowed value is the size of the embedding they index, else the example's maximum.
            name: the model's name.
            preprocess: see `Model`.
            labels: class names in order; they go to the single two-dimensional output.
            input_layout: ``NCHW`` or the like, for all inputs of that rank or by input name;
                four-dimensional float inputs with 1, 3 or 4 channels are recognised without.
            license: SPDX identifier.
            notes: see `Model`.

        Raises:
            UsageError: an input name is no parameter of forward(), or labels have no output.
            BadData: the module does not run on the examples, or the labels' count is wrong.
            UnsupportedError: an input or output is no tensor, or has a dtype we do not carry.
        """
        module, order = adapt(_in_eval_mode(module), _checked(examples, name))
        inputs = tuple(examples[n].detach().clone() for n in order)
        watch = _EmbeddingWatch(inputs)
        output, tensors = _learn(module, inputs, watch, name)
        specs = [
            _input_spec(n, examples[n], _layout(n, examples[n], input_layout), watch.high(i))
            for i, n in enumerate(order)
        ]
        outputs = [
            _output_spec(n, tensor)
            for n, tensor in zip(output_names(module, output), tensors, strict=True)
        ]
        return cls(
            module=adapt_output(module, order, output),
            signature=Signature(tuple(specs), _labelled(outputs, labels)),
            preprocess=preprocess,
            name=name,
            license=license,
            notes=tuple(notes),
        )

    def example_inputs(self, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """Input tensors that fit the signature, the same on every call with the same seed.

        Floats are standard normal; integers are uniform up to the spec's ``high`` (up to 1 where
        it is not known); an input with ``mask`` in its name is all ones.
        """
        generator = torch.Generator().manual_seed(seed)
        return tuple(_example(spec, generator) for spec in self.signature.inputs)

    def run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs for positional inputs, in the signature's order, without gradients."""
        with torch.no_grad():
            return tuple(tensor for _, tensor in flatten(self.module(*inputs)))

    def program(self) -> ExportedProgram:
        """The model as a `torch.export` program with static shapes; exported once, then kept.

        Its placeholders carry the signature's input names and it gives a flat tuple of tensors.
        It shares its weights with the module and is for reading: copy it before editing.

        Raises:
            UnsupportedError: the module cannot be exported faithfully; the message names the
                operator or the line in the user's code.
        """
        cached: ExportedProgram | None = self.__dict__.get("_program")
        if cached is None:
            inputs = self.example_inputs()
            cached = export_module(self.module, inputs, name=self.name)
            samples = [inputs, self._contrasting_inputs()]
            check_agreement(self.module, cached, samples, name=self.name)
            object.__setattr__(self, "_program", cached)
        return cached

    def digest(self) -> str:
        """SHA-256 (hex) over operators, weights, signature and preprocessing.

        Equal for the same model in another process; name, licence and notes do not count. It comes
        from one run of the module, which is much faster than exporting it; a model with control
        flow as an operator is exported for it.

        Raises:
            UnsupportedError: as `program`.
        """
        cached: str | None = self.__dict__.get("_digest")
        if cached is not None:
            return cached
        traced = trace_digest(self.module, self.example_inputs(), self.run)
        about = {
            "program": traced or hash_program(self.program()),
            "signature": self.signature.to_json(),
            "preprocess": self.preprocess.to_json() if self.preprocess is not None else None,
        }
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        object.__setattr__(self, "_digest", digest)
        return digest

    def _contrasting_inputs(self) -> tuple[torch.Tensor, ...]:
        """Inputs unlike the examples: other sign and scale, masks that end early."""
        inputs = []
        for spec, value in zip(self.signature.inputs, self.example_inputs(seed=1), strict=True):
            if _is_mask(spec) and value.dim() and value.shape[-1] > 1:
                value[..., -(value.shape[-1] // 4 or 1) :] = 0
            inputs.append(-3 * value - 1 if value.is_floating_point() else value)
        return tuple(inputs)


def _learn(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], watch: _EmbeddingWatch, name: str
) -> tuple[Any, list[torch.Tensor]]:
    """What the module gives for its examples, as it is and as a flat list."""
    try:
        with torch.no_grad(), watch:
            output = module(*inputs)
        return output, [tensor for _, tensor in flatten(output)]
    except EdgekitError:
        raise
    except Exception as error:
        raise BadData(
            f"model {name!r} does not run on its example inputs{user_line(error)}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _in_eval_mode(module: torch.nn.Module) -> torch.nn.Module:
    """The module if every part is in eval mode already, else a copy that is."""
    if not any(part.training for part in module.modules()):
        return module
    # torch refuses to copy non-leaf tensors: then the caller's own module is switched.
    with contextlib.suppress(RuntimeError):
        module = copy.deepcopy(module)
    try:
        return module.eval()
    except NotImplementedError:
        # An exported program's module has no modes: they were fixed when it was exported, and
        # program() refuses it if that was train mode. The flag is cleared so that it reads true.
        for part in module.modules():
            part.training = False
        return module


def _check_fits(preprocess: Preprocess, signature: Signature, name: str) -> None:
    """Refuses preprocessing whose result is no input of the model, batch size aside."""
    made: list[tuple[tuple[int, ...], str]]
    if not isinstance(preprocess, TextPreprocess):
        what = "a picture" if isinstance(preprocess, ImagePreprocess) else "a sound"
        made = [(preprocess.shape[1:], what)]
        found = [spec.shape[1:] for spec in signature.inputs]
    else:
        names = (preprocess.ids_name, preprocess.mask_name, preprocess.types_name)
        made = [((preprocess.max_length,), n) for n in names if n]
        found = [spec.shape[1:] for spec in signature.inputs if spec.name in names]
        missing = set(filter(None, names)) - {spec.name for spec in signature.inputs}
        if missing:
            raise BadData(
                f"the preprocessing of {name!r} fills {', '.join(sorted(missing))}; the inputs are "
                f"{', '.join(spec.name for spec in signature.inputs)}"
            )
    for shape, what in made:
        if shape not in found:
            raise BadData(
                f"the preprocessing of {name!r} turns {what} into shape {shape} per sample; "
                f"the inputs take {', '.join(map(str, found))}"
            )


def _checked(examples: Mapping[str, torch.Tensor], name: str) -> Mapping[str, torch.Tensor]:
    if not examples:
        raise UsageError(f"model {name!r} needs an example tensor for each of its inputs")
    for key, value in examples.items():
        if not isinstance(value, torch.Tensor):
            raise UsageError(
                f"example {key!r} is a {type(value).__name__}, not a torch.Tensor",
                hint="arrays are taken after torch.from_numpy()",
            )
        if not value.dim():
            raise UnsupportedError(f"input {key!r} has no batch dimension; inputs are batch first")
    return examples


def _dtype(kind: str, name: str, dtype: torch.dtype) -> str:
    known = str(dtype).removeprefix("torch.")
    if known not in DTYPES:
        raise UnsupportedError(
            f"{kind} {name!r} is {known}; allowed: {', '.join(DTYPES)}",
            hint="convert it inside the model, for example with .float()",
        )
    return known


def _input_spec(name: str, value: torch.Tensor, layout: str, high: int | None) -> TensorSpec:
    dtype = _dtype("input", name, value.dtype)
    spec = TensorSpec(name, tuple(value.shape), dtype, layout)
    if dtype not in ("int16", "int32", "int64") or not value.numel():
        return spec
    largest = int(value.max()) if high is None else high
    return TensorSpec(name, spec.shape, dtype, layout, high=max(largest, 1))


def _output_spec(name: str, value: torch.Tensor) -> TensorSpec:
    return TensorSpec(name, tuple(value.shape), _dtype("output", name, value.dtype))


def _layout(name: str, value: torch.Tensor, given: Mapping[str, str] | str | None) -> str:
    if isinstance(given, str):
        return given if len(given) == value.dim() else ""
    if given and name in given:
        return given[name]
    if value.dim() != 4 or not value.is_floating_point():
        return ""
    if value.shape[1] in (1, 3, 4):
        return "NCHW"
    return "NHWC" if value.shape[3] in (1, 3, 4) else ""


def _labelled(outputs: list[TensorSpec], labels: Sequence[str] | None) -> tuple[TensorSpec, ...]:
    if labels is None:
        return tuple(outputs)
    flat = [spec for spec in outputs if len(spec.shape) == 2]
    if len(flat) != 1:
        raise UsageError(
            f"labels need a single output of two dimensions; the outputs are "
            f"{', '.join(f'{s.name} {s.shape}' for s in outputs)}"
        )
    if len(labels) != flat[0].shape[1]:
        raise BadData(f"{len(labels)} labels for output {flat[0].name!r} of shape {flat[0].shape}")
    named = TensorSpec(flat[0].name, flat[0].shape, flat[0].dtype, labels=tuple(labels))
    return tuple(named if spec is flat[0] else spec for spec in outputs)


def _is_mask(spec: TensorSpec) -> bool:
    return "mask" in spec.name.lower()


def _example(spec: TensorSpec, generator: torch.Generator) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, spec.dtype)
    if _is_mask(spec):
        return torch.ones(spec.shape, dtype=dtype)
    if dtype.is_floating_point:
        return torch.randn(spec.shape, generator=generator).to(dtype)
    low, high = {"int8": (-128, 127), "uint8": (0, 255)}.get(spec.dtype, (0, 1))
    if spec.high is not None:
        low, high = 0, spec.high
    return torch.randint(low, high + 1, spec.shape, generator=generator).to(dtype)


class _EmbeddingWatch(TorchDispatchMode):
    """Learns which inputs index an embedding, and how many rows that embedding has."""

    supports_higher_order_operators = True  # they are run as they are

    def __init__(self, inputs: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._index = {
            tensor.untyped_storage().data_ptr(): i
            for i, tensor in enumerate(inputs)
            if not tensor.is_floating_point()
        }
        self._rows: dict[int, int] = {}

    def high(self, index: int) -> int | None:
        """The last row of the smallest embedding that input `index` looks up, if it does."""
        rows = self._rows.get(index)
        return None if rows is None else rows - 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.embedding.default:
            index = self._index.get(args[1].untyped_storage().data_ptr())
            if index is not None:
                rows = int(args[0].shape[0])
                self._rows[index] = min(rows, self._rows.get(index, rows))
        return func(*args, **(kwargs or {}))

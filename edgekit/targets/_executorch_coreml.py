"""ExecuTorch's Core ML delegate: the partitioner, and a reader of what the delegate gets.

What it gets is a directory made into one blob: a Core ML package, and ``metadata.json`` with the
names of its inputs and outputs in the order of the call.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.runtime.session import Array
from edgekit.scratch import scratch
from edgekit.signature import Signature
from edgekit.targets import Stored, _coreml_package
from edgekit.targets._executorch_xnnpack import Operator, Value

if TYPE_CHECKING:
    from edgekit.targets._coreml_program import MilProgram

BACKEND = "CoreMLBackend"
SYSTEMS = ("iOS 16", "macOS 13")
"""What packages are made for: the oldest that the Core ML target makes float packages for, and that
ExecuTorch's delegate asks for. Its Swift package asks for iOS 17."""

_PRECISION = "model_compute_precision"
_PACKAGE = "model.mlpackage"
_ROOT = "lowered_module"
"""The directory's own name, which is in the blob too."""


def partitioner(scheme: str) -> Any:
    """Gives Core ML what coremltools converts, in half or single precision."""
    _coreml_package.quiet()
    import coremltools as ct
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    precision = ct.precision.FLOAT16 if scheme == "fp16" else ct.precision.FLOAT32
    return CoreMLPartitioner(
        compile_specs=CoreMLBackend.generate_compile_specs(
            compute_precision=precision, minimum_deployment_target=ct.target.iOS16
        )
    )


def is_half(options: Mapping[str, bytes]) -> bool:
    """Whether the packages were converted to half precision."""
    return options.get(_PRECISION, b"").decode() == "float16"


@contextlib.contextmanager
def same_bytes() -> Iterator[None]:
    """Makes what the delegate gets depend on the model alone.

    ExecuTorch (1.5) draws a random identifier for each package, under which a phone caches what it
    compiled, and coremltools writes dates and more of these. Here it is a digest of the package.
    """
    from coremltools.converters.mil import Builder
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.exir.backend.backend_details import PreprocessResult

    backend: Any = CoreMLBackend
    before = backend.__dict__["preprocess_model"]

    def preprocess(model: Any, model_type: Any) -> Any:
        return PreprocessResult(processed_bytes=_flat(backend, model))

    Builder.name_count.clear()  # else names tell what the process made before
    backend.preprocess_model = staticmethod(preprocess)
    try:
        yield
    finally:
        backend.preprocess_model = before


def _flat(backend: Any, model: Any) -> bytes:
    from executorch.backends.apple.coreml import executorchcoreml

    from edgekit.artifact import files_of, fingerprint, sha256_of

    with scratch("delegate") as place:
        folder = place / _ROOT
        package, spec = folder / _PACKAGE, model.get_spec()
        _coreml_package.write(spec, Path(model.weights_dir), package)
        digest = fingerprint(files=[sha256_of(f) for f in files_of(package)])
        told = backend.model_metadata_from_spec(
            model_spec=spec, identifier=f"executorch_{digest[:32]}"
        )
        backend.save_model_metadata(model_metadata=told, model_dir_path=folder)
        flat = executorchcoreml.flatten_directory_contents(str(folder))
    if not flat:
        raise ValueError("ExecuTorch made nothing of a Core ML package")
    return bytes(flat)


def graph(
    blob: bytes, named: Mapping[str, bytes], arguments: list[str], number: int
) -> tuple[list[Operator], dict[str, Value]]:
    """The operators and values of one Core ML package.

    Args:
        blob: the package.
        named: constants that the program holds; Core ML's lie in the package.
        arguments: names of the program's values that it is called with.
        number: of the package, for names.

    Raises:
        ValueError: it is none.
        BadData: the package is damaged.
    """
    told, program = _program(blob)
    ends: dict[str, str] = dict(
        zip([*told["inputNames"], *told["outputNames"]], arguments, strict=True)
    )

    def name(inner: str) -> str:
        return ends.get(inner, f"coreml {number}.{inner}")

    values = {}
    for key, constant in program.constants.items():
        if not isinstance(constant.value, str):
            data = constant.value.tobytes() if constant.stored or constant.value.ndim else None
            values[name(key)] = Value(constant.dtype, constant.value.shape, data)
    operators = []
    for operation in program.operations:
        for port in operation.outputs:
            if port.name not in ends:
                values[name(port.name)] = Value(port.dtype, port.shape)
        inputs = tuple(map(name, program.sources(operation)))
        outputs = tuple(name(port.name) for port in operation.outputs)
        operators.append(Operator(operation.kind, inputs, outputs, delegated=True))
    return operators, values


def unemulated(blob: bytes) -> str | None:
    """Why Core ML's emulation can't evaluate a package; None where it can."""
    from edgekit.targets._coreml_run import unknown_operators

    unknown = unknown_operators(_program(blob)[1])
    return f"the emulation of Core ML has no operator {', '.join(unknown)}" if unknown else None


class EmulatedDelegate:
    """A program that Core ML gets whole, by the emulation of Core ML; see
    `edgekit.runtime.session.Session`.

    What ExecuTorch's own runtime does around the package is not emulated: it hands the inputs over,
    and the outputs back.
    """

    target = "executorch"
    emulated = True

    def __init__(self, blob: bytes, signature: Signature, threads: int) -> None:
        from edgekit.targets._coreml_run import EmulatedSession

        with scratch("delegate") as folder:
            told = unpacked(blob, folder)
            sides = (signature.inputs, told["inputNames"]), (signature.outputs, told["outputNames"])
            inputs, outputs = (
                tuple(dataclasses.replace(s, name=n) for s, n in zip(specs, names, strict=True))
                for specs, names in sides
            )
            self._session: Any = EmulatedSession(
                folder / _ROOT / _PACKAGE, Signature(inputs, outputs), threads
            )
        self.signature, self.threads = signature, threads
        self.runtime_version = self._session.runtime_version
        self._inputs = {s.name: t.name for s, t in zip(signature.inputs, inputs, strict=True)}
        self._outputs = {t.name: s.name for s, t in zip(signature.outputs, outputs, strict=True)}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `edgekit.runtime.session.Session.run`."""
        self.signature.check_inputs(feeds, what="executorch")
        given = {self._inputs[name]: value for name, value in feeds.items()}
        return {self._outputs[n]: v for n, v in self._session.run(given).items()}

    def close(self) -> None:
        """See `edgekit.runtime.session.Session.close`."""
        self._session.close()


def stored(blob: bytes) -> list[Stored]:
    """What a package holds in half precision; see `edgekit.targets.Target.stored`."""
    from edgekit.targets._coreml_inspect import stored

    return stored(_program(blob)[1])


def _program(blob: bytes) -> tuple[dict[str, Any], MilProgram]:
    """The ``metadata.json`` of a package, and its program."""
    from edgekit.targets._coreml_program import program_of

    with scratch("delegate") as folder:
        told = unpacked(blob, folder)
        return told, program_of(_coreml_package.read(folder / _ROOT / _PACKAGE))


def unpacked(blob: bytes, folder: Path) -> dict[str, Any]:
    """Writes the package into ``folder``; gives its ``metadata.json``.

    Raises:
        ValueError: the blob is no directory.
    """
    from executorch.backends.apple.coreml import executorchcoreml

    if not executorchcoreml.unflatten_directory_contents(blob, str(folder)):
        raise ValueError("what it gives to Core ML is no package")
    told: dict[str, Any] = json.loads((folder / _ROOT / "metadata.json").read_text())
    return told

"""edgekit: one model, one quantization, every mobile runtime, and a proof for each.

The names below are the public interface, each imported on its first use: ``import edgekit`` itself
imports nothing but the standard library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit import errors as errors
    from edgekit.artifact import Store as Store
    from edgekit.device import Device as Device
    from edgekit.device import load as load_device
    from edgekit.export import ExportRequest as ExportRequest
    from edgekit.export import ExportResult as ExportResult
    from edgekit.export import export_bundle as export_bundle
    from edgekit.model import Model as Model
    from edgekit.recipe import stage as stage
    from edgekit.runtime.audio import AudioPreprocess as AudioPreprocess
    from edgekit.runtime.bundle import Bundle as Bundle
    from edgekit.runtime.preprocess import ImagePreprocess as ImagePreprocess
    from edgekit.runtime.preprocess import TextPreprocess as TextPreprocess
    from edgekit.runtime.session import open_session as open_session
    from edgekit.settings import Settings as Settings
    from edgekit.signature import Signature as Signature
    from edgekit.signature import TensorSpec as TensorSpec
    from edgekit.sources import load as load_model

__version__ = "0.1.0"

# A name, and the module:attribute that it is; `edgekit.errors` is a module itself.
_HOMES = {
    "AudioPreprocess": "edgekit.runtime.audio:AudioPreprocess",
    "Bundle": "edgekit.runtime.bundle:Bundle",
    "Device": "edgekit.device:Device",
    "ExportRequest": "edgekit.export:ExportRequest",
    "ExportResult": "edgekit.export:ExportResult",
    "ImagePreprocess": "edgekit.runtime.preprocess:ImagePreprocess",
    "Model": "edgekit.model:Model",
    "Settings": "edgekit.settings:Settings",
    "Signature": "edgekit.signature:Signature",
    "Store": "edgekit.artifact:Store",
    "TensorSpec": "edgekit.signature:TensorSpec",
    "TextPreprocess": "edgekit.runtime.preprocess:TextPreprocess",
    "errors": "edgekit.errors:",
    "export_bundle": "edgekit.export:export_bundle",
    "load_device": "edgekit.device:load",
    "load_model": "edgekit.sources:load",
    "open_session": "edgekit.runtime.session:open_session",
    "stage": "edgekit.recipe:stage",
}

__all__ = [
    "AudioPreprocess",
    "Bundle",
    "Device",
    "ExportRequest",
    "ExportResult",
    "ImagePreprocess",
    "Model",
    "Settings",
    "Signature",
    "Store",
    "TensorSpec",
    "TextPreprocess",
    "errors",
    "export_bundle",
    "load_device",
    "load_model",
    "open_session",
    "stage",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module, _, attribute = home.partition(":")
    found = importlib.import_module(module)
    value = getattr(found, attribute) if attribute else found
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

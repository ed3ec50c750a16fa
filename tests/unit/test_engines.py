"""Engines: found by file name, honest about what is missing, set as peers.toml says."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekit import engines
from edgekit.errors import BadData, MissingDependency, UnsupportedError, UsageError
from edgekit.names import ENGINES, EXTRAS, TARGETS
from edgekit.signature import Signature, TensorSpec

PEERS = Path(__file__).parents[1] / "benchmarks" / "peers.toml"
SIGNATURE = Signature((TensorSpec("x", (1, 4)),), (TensorSpec("y", (1, 2)),))


def program() -> torch.export.ExportedProgram:
    return torch.export.export(torch.nn.Linear(4, 2).eval(), (torch.zeros(1, 4),))


class Fake:
    """An engine whose vendor is a function."""

    id = "fake"
    extra = "nncf"
    packages: tuple[str, ...] = ("torch",)
    targets = ("openvino",)
    defaults: Mapping[str, Any] = {"bits": 8, "per_channel": True}

    def __init__(self, vendor: Any = None) -> None:
        self.vendor = vendor
        self.settings: Mapping[str, Any] = {}

    def quantize(
        self,
        program: torch.export.ExportedProgram,
        feeds: Any,
        signature: Signature,
        target: str,
        out: Path,
        settings: Mapping[str, Any],
    ) -> list[Path]:
        self.settings = settings
        self.vendor()
        return [out]


def run(engine: str | engines.Engine, target: str, out: Path, **settings: Any) -> list[Path]:
    return engines.quantize(engine, program(), [], SIGNATURE, target, out, settings)


def test_every_file_is_an_engine_of_that_name() -> None:
    folder = Path(engines.__file__).parent
    files = {f.stem for f in folder.glob("*.py") if not f.stem.startswith("_")}
    assert {n.replace("-", "_") for n in engines.available()} == files
    assert engines.available() == ENGINES
    for name in engines.available():
        engine = engines.find(name)
        assert engine.id == name
        assert engine.extra in EXTRAS
        assert engine.packages
        assert set(engine.targets) <= set(TARGETS)


def test_every_target_has_an_engine() -> None:
    served = {t for name in engines.available() for t in engines.find(name).targets}
    assert served == set(TARGETS)


def test_the_defaults_are_what_peers_toml_freezes() -> None:
    frozen = tomllib.loads(PEERS.read_text())
    assert sorted(frozen) == list(engines.available())
    for name, settings in frozen.items():
        assert settings == engines.find(name).defaults


def test_an_unknown_engine_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"unknown engine 'nnfc'\. Did you mean 'nncf'"):
        engines.find("nnfc")


def test_a_private_file_is_no_engine() -> None:
    with pytest.raises(UsageError, match="unknown engine '_common'"):
        engines.find("_common")


def test_a_missing_package_is_named_with_its_install_command(tmp_path: Path) -> None:
    engine = Fake()
    engine.packages = ("torch", "no-such-distribution")
    with pytest.raises(MissingDependency, match="'fake' needs no-such-distribution") as caught:
        run(engine, "openvino", tmp_path / "model.xml")
    assert caught.value.hint == "pip install 'edgekit[nncf]'"


def test_another_target_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="'fake' makes nothing for target 'tflite'"):
        run(Fake(), "tflite", tmp_path / "model.tflite")


def test_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"setting of engine 'fake' 'bit'\. Did you mean 'bits'"):
        run(Fake(), "openvino", tmp_path / "model.xml", bit=4)


def test_settings_replace_defaults_one_by_one(tmp_path: Path) -> None:
    engine = Fake(lambda: None)
    run(engine, "openvino", tmp_path / "model.xml", bits=4)
    assert engine.settings == {"bits": 4, "per_channel": True}


def test_a_vendors_failure_names_engine_and_target(tmp_path: Path) -> None:
    def fail() -> None:
        raise IndexError("list index out of range")

    message = "'fake' gave up on this model for openvino: IndexError: list index out of range"
    with pytest.raises(UnsupportedError, match=message):
        run(Fake(fail), "openvino", tmp_path / "model.xml")


def test_an_error_of_our_own_stays_itself(tmp_path: Path) -> None:
    def fail() -> None:
        raise BadData("calibration got no samples")

    with pytest.raises(BadData, match="no samples"):
        run(Fake(fail), "openvino", tmp_path / "model.xml")


class Functional(torch.nn.Module):
    """A linear layer of which a graph can't tell that it is one but by its operator."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight)


def test_labels_let_annotators_find_layers() -> None:
    from torch.fx.passes.utils.source_matcher_utils import get_source_partitions

    from edgekit.compress.graph import graph_module
    from edgekit.engines._common import labelled

    plain = torch.export.export(Functional().eval(), (torch.zeros(1, 4),))
    assert not get_source_partitions(graph_module(plain).graph, [torch.nn.Linear])
    found = get_source_partitions(labelled(plain).graph, [torch.nn.Linear])
    assert len(found[torch.nn.Linear]) == 1


def test_a_graph_without_quantization_is_not_passed_off_as_quantized() -> None:
    from edgekit.compress.graph import graph_module
    from edgekit.engines._common import check_quantized

    with pytest.raises(UnsupportedError, match="'inc' found nothing to quantize"):
        check_quantized("inc", graph_module(program()))

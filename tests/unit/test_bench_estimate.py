"""The estimates' benchmark: rows from tables, folds, baselines, calibration."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")

HEADER = (
    "model,precision,runtime,compute_unit,device,soc,latency_ms,peak_memory_mb,source,threads,"
    "batch,stat,notes\n"
)


@pytest.fixture(scope="module")
def scripts() -> Any:
    sys.path.insert(0, BENCHMARKS)
    try:
        import estimate_baselines
        import estimate_fit
        import estimate_rows
    finally:
        sys.path.remove(BENCHMARKS)
    return estimate_rows, estimate_baselines, estimate_fit


@pytest.fixture(scope="module")
def rows(scripts: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Two chips with one core, two networks, and rows that can't be used."""
    reader, _, _ = scripts
    times = {"A76 2.4GHz x 4 RK3588": (10.0, 30.0), "BCM2712 Raspberry Pi 5": (11.0, 36.0)}
    lines = [HEADER]
    for soc, pair in times.items():
        for net, ms in zip(("mobilenet_v2", "resnet18"), pair, strict=True):
            lines.append(f"{net},fp16,ncnn,CPU,d,{soc},{ms + 1},,s,4,1,avg,min={ms}; big\n")
    lines.append("no_such_net,fp16,ncnn,CPU,d,RK3588,5,,s,4,1,avg,min=5; big\n")
    lines.append("resnet18,fp16,ncnn,CPU,d,an unknown chip,5,,s,4,1,avg,min=5; big\n")
    lines.append("resnet18,fp16,ncnn-vulkan,GPU,d,RK3588,5,,s,4,1,avg,min=5; big\n")
    folder = tmp_path_factory.mktemp("reference")
    (folder / "latency_ncnn.csv").write_text("".join(lines))
    loaded: list[Any] = reader.load(folder)
    return loaded


def test_rows_that_can_be_described_are_read_with_their_least_time(rows: list[Any]) -> None:
    assert [(r.soc, r.model, r.ms) for r in rows] == [
        ("RK3588", "mobilenet_v2", 10.0),
        ("RK3588", "resnet18", 30.0),
        ("BCM2712", "mobilenet_v2", 11.0),
        ("BCM2712", "resnet18", 36.0),
    ]
    assert {r.setting.core for r in rows} == {"Cortex-A76"}
    assert rows[0].setting.threads == 4


def test_baselines_look_at_other_chips_only(scripts: Any, rows: list[Any]) -> None:
    _, baselines, _ = scripts
    same = baselines.same_core(rows)
    assert [round(same[i], 6) for i in range(4)] == [11.0, 36.0, 10.0, 30.0]
    # The probe took 10 ms here; there the two were 36 / 11 apart.
    assert baselines.one_probe(rows) == pytest.approx({1: 10 * 36 / 11, 3: 11 * 3.0})


def test_folds_keep_names_whole_and_are_always_the_same(scripts: Any) -> None:
    _, _, fitting = scripts
    names = [f"chip {i % 7}" for i in range(50)]
    folds = fitting.folds(names, 3)
    assert folds == fitting.folds(list(reversed(names)), 3)
    assert sum(len(fold) for fold in folds) == 7 == len(set.union(*folds))


def test_factors_cover_what_they_state(scripts: Any) -> None:
    _, _, fitting = scripts
    missed = [("probed float", (-1) ** i * i / 100) for i in range(1, 100)]
    factor = fitting.calibrated(missed)["probed float"]
    inside = sum(abs(m) <= factor for _, m in missed) / len(missed)
    assert math.isclose(inside, 0.8, abs_tol=0.02)

"""What the worker reads on a device: from traces of the files of real boards, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekit.bench import _android, _files, _state, _thermal
from edgekit.bench._energy import EnergyMeter
from edgekit.bench._machine import clusters, machine_facts
from edgekit.bench.worker import _affinity
from edgekit.errors import BadData

CPU = "sys/devices/system/cpu"


def board(root: Path, files: dict[str, object]) -> Path:
    """Writes files below a root."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def zone(number: int, kind: str, millidegrees: object, **more: object) -> dict[str, object]:
    """The files of a thermal zone."""
    base = f"sys/class/thermal/thermal_zone{number}"
    files = {f"{base}/type": kind, f"{base}/temp": millidegrees}
    return files | {f"{base}/{name}": value for name, value in more.items()}


# Small files.


def test_files_that_lie_are_read_as_nothing(tmp_path: Path) -> None:
    board(tmp_path, {"a": "nan", "b": "-inf", "c": "twelve", "d": "12.5", "e": "", "l": "0-3,8 10"})
    assert [_files.number(tmp_path, n) for n in "abcdez"] == [None, None, None, 12.5, None, None]
    assert _files.cpu_list(_files.text(tmp_path, "l")) == [0, 1, 2, 3, 8, 10]
    assert _files.cpu_list("0-99999999") == list(range(4097))  # a list that can't be one is cut
    assert _files.cpu_list("x-3,-,7") == [7]
    board(tmp_path, {f"policy{n}/x": n for n in (10, 0, 4)})
    assert _files.entries(tmp_path, "policy[0-9]*") == ["policy0", "policy4", "policy10"]


# What machine it is.


def pixel(root: Path) -> Path:
    """CPUs of a phone with four small, three middle and one big core."""
    files: dict[str, object] = {f"{CPU}/present": "0-7"}
    kinds = ((range(4), 250, 1704000, "0xd46"), (range(4, 7), 760, 2367000, "0xd4d"))
    lines = []
    for cpus, capacity, khz, part in (*kinds, ((7,), 1024, 2914000, "0xd4e")):
        for cpu in cpus:
            files[f"{CPU}/cpu{cpu}/cpu_capacity"] = capacity
            files[f"{CPU}/cpu{cpu}/cpufreq/cpuinfo_max_freq"] = khz
            files[f"{CPU}/cpu{cpu}/cpufreq/cpuinfo_min_freq"] = 324000
            files[f"{CPU}/cpu{cpu}/cpufreq/scaling_governor"] = "sched_pixel"
            lines.append(f"processor\t: {cpu}\nFeatures\t: fp asimd asimddp i8mm")
            lines.append(f"CPU implementer\t: 0x41\nCPU part\t: {part}\n")
    files["proc/cpuinfo"] = "\n".join(lines)
    files["proc/meminfo"] = "MemTotal:        7811192 kB\nMemAvailable:    3811192 kB"
    files["proc/device-tree/model"] = "Husky based on ZUMA\0"
    return board(root, files)


def test_clusters_are_told_apart_the_fastest_first(tmp_path: Path) -> None:
    found = clusters(pixel(tmp_path))
    assert [c["cpus"] for c in found] == [[7], [4, 5, 6], [0, 1, 2, 3]]
    assert [c["max_mhz"] for c in found] == [2914, 2367, 1704]
    assert found[0] == {
        "cpus": [7],
        "capacity": 1024,
        "min_mhz": 324,
        "max_mhz": 2914,
        "governor": "sched_pixel",
        "implementer": "0x41",
        "part": "0xd4e",
    }
    facts = machine_facts(tmp_path)
    assert facts["cpu"] == "Husky based on ZUMA"
    assert facts["isa"] == ["asimd", "asimddp", "fp", "i8mm"]
    assert (facts["memory_mib"], facts["governor"]) == (7628, "sched_pixel")
    assert clusters(tmp_path / "nothing") == []


def test_a_process_is_kept_on_the_cpus_that_are_asked_for(tmp_path: Path) -> None:
    import os

    before = os.sched_getaffinity(0)
    mine = sorted(before)
    try:
        assert _affinity(None, tmp_path) == mine
        assert _affinity([mine[0]], tmp_path) == [mine[0]]
        with pytest.raises(BadData, match="does not tell which CPUs are big"):
            _affinity("big", tmp_path)
        with pytest.raises(BadData, match=r"cpus \[4000\].*can't be kept"):
            _affinity([4000], tmp_path)
        board(tmp_path, {f"{CPU}/present": f"{mine[0]}"})
        assert _affinity("big", tmp_path) == [mine[0]]
    finally:
        os.sched_setaffinity(0, before)


# Its state.


def test_a_look_tells_heat_clocks_load_and_power(tmp_path: Path) -> None:
    files: dict[str, object] = zone(0, "cpu-thermal", 61234) | zone(1, "battery", 45000)
    files |= {
        f"{CPU}/cpufreq/policy0/scaling_cur_freq": 1500000,
        f"{CPU}/cpufreq/policy0/affected_cpus": "0 1 2",
        f"{CPU}/cpufreq/policy0/scaling_governor": "ondemand",
        f"{CPU}/cpufreq/policy4/scaling_cur_freq": 2400000,
        f"{CPU}/cpufreq/policy4/affected_cpus": "4",
        f"{CPU}/cpufreq/policy4/scaling_governor": "performance",
        "proc/loadavg": "1.25 0.50 0.10 3/412 999",
        "proc/pressure/cpu": "some avg10=7.50 avg60=1.00 avg300=0.10 total=1",
        "proc/meminfo": "MemAvailable:    2097152 kB",
        "sys/class/power_supply/usb/type": "USB",
        "sys/class/power_supply/battery/type": "Battery",
        "sys/class/power_supply/battery/capacity": 14,
        "sys/class/power_supply/battery/status": "Discharging",
        "sys/class/power_supply/mouse/type": "Battery",
        "sys/class/power_supply/mouse/scope": "Device",
    }
    look = _state.look(board(tmp_path, files))
    assert look["temperatures_c"] == {"cpu-thermal": 61.234}
    assert look["temperature_c"] == 61.234
    assert look["frequencies_mhz"] == {"0": 1500, "1": 1500, "2": 1500, "4": 2400}
    assert look["frequency_mhz"] == 1725
    assert look["governors"] == ["ondemand", "performance"]
    assert (look["load_average"], look["running"], look["pressure"]) == (1.25, 3, 7.5)
    assert look["available_mib"] == 2048
    assert look["battery"] == {"percent": 14.0, "status": "discharging"}
    assert look["throttling"] is None  # nothing tells
    assert "battery" not in _state.look(tmp_path, full=False)


@pytest.mark.parametrize("value", [-1, 0, -273000, "nan", "", 200000, "oops"])
def test_run_09_a_sensor_without_a_value_is_no_sensor(tmp_path: Path, value: object) -> None:
    root = board(tmp_path, zone(0, "cpu-thermal", value))
    assert _state.look(root)["temperature_c"] is None
    assert _thermal.cool_down(root, limit=50, budget=60)["state"] == "unknown"


def test_servers_and_boards_tell_where_they_are_throttled(tmp_path: Path) -> None:
    files: dict[str, object] = {
        "sys/class/hwmon/hwmon0/name": "nvme",
        "sys/class/hwmon/hwmon0/temp1_input": 90000,
        "sys/class/hwmon/hwmon1/name": "coretemp",
        "sys/class/hwmon/hwmon1/temp1_input": 55000,
    }
    for cpu, count in ((0, 3), (1, 4)):
        files[f"{CPU}/cpu{cpu}/thermal_throttle/core_throttle_count"] = count
    root = board(tmp_path / "server", files)
    assert _state.look(root)["temperature_c"] == 55.0
    assert _state.throttle_marks(root) == {"core_throttle_count": 7.0}
    firmware = "sys/devices/platform/soc/soc:firmware/get_throttled"
    pi = board(tmp_path / "pi", {firmware: "50005"})  # under-voltage and throttled, now and before
    assert _state.throttling_now(pi) == ["under-voltage", "throttled"]
    assert _state.throttle_marks(pi) == {"firmware_has_throttled": 0b0100}
    cooling = "sys/class/thermal/cooling_device0"
    held = board(tmp_path / "held", {f"{cooling}/type": "cpufreq-cpu0", f"{cooling}/cur_state": 2})
    assert _state.throttling_now(held) == ["cpufreq-cpu0 held back by 2 steps"]
    board(held, {f"{cooling}/cur_state": 0})
    assert _state.throttling_now(held) == []


# The gate.


def test_run_09_the_limit_lies_under_the_point_of_throttling(tmp_path: Path) -> None:
    trips: dict[str, object] = {
        "trip_point_0_type": "passive",
        "trip_point_0_temp": 80000,
        "trip_point_1_type": "critical",
        "trip_point_1_temp": 60000,
    }
    assert _thermal.limit_c(board(tmp_path, zone(0, "cpu", 40000, **trips))) == 70.0
    assert _thermal.limit_c(tmp_path / "nothing") is None


class Trace:
    """A chip over time: degrees, or a reason for throttling, at each look."""

    def __init__(self, *steps: Any) -> None:
        self.steps, self.now, self.slept = list(steps), 0.0, []

    def read(self, root: Path) -> dict[str, Any]:
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, list):
            return {"temperature_c": None, "throttling": step}
        return {"temperature_c": step, "throttling": None}

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def wait(self, limit: float | None, budget: float) -> dict[str, Any]:
        return _thermal.cool_down(
            Path("/nowhere"),
            limit=limit,
            budget=budget,
            read=self.read,
            sleep=self.sleep,
            clock=lambda: self.now,
        )


@pytest.mark.parametrize(
    ("trace", "limit", "budget", "state", "waited"),
    [
        (Trace(40.0), 50.0, 60.0, "ok", 0.0),
        (Trace(80.0, 60.0, 49.0), 50.0, 60.0, "cooled", 4.0),
        (Trace(80.0, 81.0, 82.0), 50.0, 7.0, "hot", 7.0),  # rising: the budget bounds it
        (Trace(80.0), 50.0, 0.0, "hot", 0.0),
        (Trace(80.0), None, 60.0, "ok", 0.0),  # no limit, and nothing says that it is throttled
        (Trace(["severe"], ["severe"], []), None, 60.0, "cooled", 4.0),
        (Trace(None), 50.0, 60.0, "unknown", 0.0),  # no sensor: never a blind wait
    ],
)
def test_run_09_a_hot_chip_is_waited_for_within_a_budget(
    trace: Trace, limit: float | None, budget: float, state: str, waited: float
) -> None:
    found = trace.wait(limit, budget)
    assert (found["state"], found["waited_s"]) == (state, waited)
    assert sum(trace.slept) == waited <= budget
    assert len(found["trace"]) == len(trace.slept) + 1


# Android.

THERMAL = """\
IsStatusOverride: false
ThermalEventListeners:
	callbacks: 2
Thermal Status: {status}
Cached temperatures:
	Temperature{{mValue=99.9, mType=0, mName=OLD, mStatus=0}}
HAL Ready: true
Current temperatures from HAL:
	Temperature{{mValue=41.5, mType=0, mName=BIG, mStatus=0}}
	Temperature{{mValue=-1.0, mType=0, mName=MID, mStatus=0}}
	Temperature{{mValue=NaN, mType=1, mName=G3D, mStatus=0}}
	Temperature{{mValue=33.25, mType=3, mName=VIRTUAL-SKIN, mStatus=0}}
	Temperature{{mValue=60.0, mType=2, mName=battery, mStatus=0}}
Current cooling devices from HAL:
	CoolingDevice{{mValue=0, mType=2, mName=thermal-cpufreq-0}}
"""


def test_run_09_androids_thermal_service_is_read() -> None:
    found = _android.thermal(THERMAL.format(status=2))
    assert found == {"status": 2, "temperatures_c": {"cpu:BIG": 41.5, "skin:VIRTUAL-SKIN": 33.25}}
    assert _android.thermal(THERMAL.format(status=-1))["status"] is None
    assert _android.thermal(THERMAL.format(status=9))["status"] is None
    assert _android.thermal("cannot find service") == {"status": None, "temperatures_c": {}}


def test_run_09_a_phone_whose_files_are_closed_is_asked(tmp_path: Path) -> None:
    root = board(tmp_path, {"dumpsys/thermalservice": THERMAL.format(status=3)})
    found = _thermal.reading(root)
    assert found["temperature_c"] == 41.5
    assert found["throttling"] == ["Android's thermal status is severe"]
    board(tmp_path, {"dumpsys/thermalservice": THERMAL.format(status=0)})
    assert _thermal.reading(root)["throttling"] == []


def test_run_10_battery_and_screen_of_a_phone_are_read() -> None:
    text = """Current Battery Service state:
  AC powered: false
  USB powered: true
  status: 2
  level: 45
  scale: 50
  temperature: 312
"""
    found = _android.battery(text)
    gauge = {"coulombs": None, "volts": None}
    charging = {"percent": 90.0, "status": "charging", "powered": True, "temperature_c": 31.2}
    assert found == charging | gauge
    assert _android.battery("") == dict.fromkeys(charging | gauge)
    found = _android.power("  mWakefulness=Asleep\n  mBatterySaverEnabled=true\n")
    assert found == {"screen_on": False, "power_save": True}
    assert _android.power("") == {"screen_on": None, "power_save": None}


def test_run_10_a_look_at_a_phone_has_them(tmp_path: Path) -> None:
    files = {
        "dumpsys/battery": "  status: 3\n  level: 12\n  scale: 100",
        "dumpsys/power": "mWakefulness=Awake\nmBatterySaverEnabled=true",
    }
    assert _state.look(board(tmp_path, files))["battery"] == {
        "percent": 12.0,
        "status": "discharging",
        "screen_on": True,
        "power_save": True,
    }


# Energy.


def rapl(root: Path, **packages: int) -> Path:
    """RAPL's counters in microjoules, which start again at 1000."""
    files: dict[str, object] = {}
    for index, (name, microjoules) in enumerate(packages.items()):
        base = f"sys/class/powercap/intel-rapl:{index}"
        files |= {f"{base}/name": name, f"{base}/energy_uj": microjoules}
        files[f"{base}/max_energy_range_uj"] = 1000
    return board(root, files)


def test_energy_is_rapls_over_all_packages_and_over_a_wrap(tmp_path: Path) -> None:
    meter = EnergyMeter(rapl(tmp_path, package_0=900, package_1=10, psys=5))
    rapl(tmp_path, package_0=100, package_1=60, psys=999)
    found = meter.stop()
    assert found["joules"] == pytest.approx(250e-6)
    assert found["reason"] is None and found["source"].startswith("rapl")


def test_energy_of_a_battery_is_its_charge_at_its_voltage(tmp_path: Path) -> None:
    supply = "sys/class/power_supply/battery"
    files: dict[str, object] = {
        f"{supply}/type": "Battery",
        f"{supply}/status": "Discharging",
        f"{supply}/charge_counter": 3_000_000,
        f"{supply}/voltage_now": 4_000_000,
    }
    meter = EnergyMeter(board(tmp_path, files))
    board(tmp_path, {f"{supply}/charge_counter": 2_999_000, f"{supply}/voltage_now": 3_800_000})
    assert meter.stop()["joules"] == pytest.approx(1e-3 * 3600 * 3.9)  # 1 mAh at 3.9 V
    board(tmp_path, {f"{supply}/status": "Charging"})
    assert meter.stop() | {"seconds": 0} == {
        "joules": None,
        "source": None,
        "seconds": 0,
        "reason": "the battery is being charged",
    }


def test_energy_of_a_phone_is_asked_of_its_service(tmp_path: Path) -> None:
    text = "  USB powered: false\n  status: 3\n  voltage: 4000\n  Charge counter: {}"
    meter = EnergyMeter(board(tmp_path, {"dumpsys/battery": text.format(3_000_000)}))
    assert "not moved" in meter.stop()["reason"]
    board(tmp_path, {"dumpsys/battery": text.format(2_998_000)})
    found = meter.stop()
    assert found["joules"] == pytest.approx(2e-3 * 3600 * 4.0)
    assert found["source"] == "fuel gauge: the whole device"


def test_energy_that_nothing_counts_is_none_with_a_reason(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path).stop()["reason"] == (
        "this machine has neither RAPL nor a battery with a gauge"
    )
    board(tmp_path, {"sys/class/powercap/intel-rapl:0/name": "package-0"})
    assert "only root may read them" in EnergyMeter(tmp_path).stop()["reason"]

"""The receiver's page in headless Chromium, against a real receiver: no error, no request beyond
its origin, the figures of /v1/report, views that can be shared, and names that would be scripts.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

pytest.importorskip("duckdb", reason="pip install 'edgekit[telemetry]'")

from receiving import RESOURCE, Receiving, metrics_record, proven_on, receiver

from edgekit.runtime import otlp
from edgekit.runtime.aggregate import Aggregate
from edgekit.runtime.bundle import Bundle
from edgekit.telemetry.contract import COHORT
from edgekit.telemetry.duck import DuckStore
from edgekit.telemetry.reading import read_metrics

NOW = time.time_ns()
DAY_NS = 86_400 * 10**9
HOSTILE = '"><img src=x onerror="document.title=1"><script>document.title="ran"</script>'
KEY = "an-admin-key-of-the-fleet"
FIGURES = ("devices", "requests", "error_rate", "crash_rate", "fallback_rate")


def fill(path: Path) -> None:
    """Ten days of two versions, of which the newer is worse and drifted on the last two; one app's
    version is a script, which no device could send."""
    rng = np.random.default_rng(5)
    groups = (("1.0", "pixel-8", "2.0", 14), ("1.1", "pixel-8", "2.0", 12),
              ("1.0", "pixel-6", "hostile", 11), ("1.0", "ipad", "2.0", 4))  # fmt: skip
    place = list(COHORT).index("app")
    with DuckStore(path) as store:
        for back in range(10):
            for version, device, app, devices in groups:
                newer = version == "1.1"
                resource = {**RESOURCE, "edgekit.bundle.version": version,
                            "edgekit.device.class": device, "service.version": app}  # fmt: skip
                records = []
                for _ in range(devices):
                    aggregate = Aggregate()
                    shape = (2, 2) if newer and back < 2 else (6, 2)
                    for sure in rng.beta(*shape, 40):
                        source = "device" if rng.random() < 0.9 else "cloud"
                        slow = float(rng.lognormal(-4, 0.4) * (1.5 if newer else 1))
                        aggregate.add(source, "sure", slow, float(sure), 3, 1e8)
                    for _ in range(12 if newer and rng.random() < 0.6 else 0):
                        aggregate.add_error("device", "MemoryError")
                    when = NOW - back * DAY_NS
                    records.append(metrics_record(aggregate, resource=resource, time_ns=when))
                deliveries = read_metrics(otlp.request(records)).deliveries
                if app == "hostile":
                    cohort = deliveries[0].cohort
                    cohort = (*cohort[:place], HOSTILE, *cohort[place + 1 :])
                    deliveries = [dataclasses.replace(d, cohort=cohort) for d in deliveries]
                store.write(deliveries)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiving]:
    store = tmp_path_factory.mktemp("fleet") / "fleet.duckdb"
    fill(store)
    with receiver(store) as running:
        yield running


def settled(tab: Any, state: str = "shown") -> None:
    # The page's policy lets no test's condition in, so it is told by an attribute.
    tab.wait_for_selector(f"body[data-state={state}]", timeout=60_000)


def figures(tab: Any, where: str, name: str) -> list[float]:
    found = tab.locator(f"{where} data[data-figure='{name}']").all()
    return [float(one.get_attribute("value")) for one in found]


def told(fleet: Receiving, query: str, key: str | None = None) -> dict[str, Any]:
    status, body = fleet.get(f"/v1/report?{query}", key)
    assert status == 200
    return json.loads(body)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_is_quiet_fits_and_stays_at_its_origin(
    fleet: Receiving, opened: Any, width: int, scheme: str
) -> None:
    origin = f"http://127.0.0.1:{fleet.port}/"
    tab, said, asked = opened(origin, viewport={"width": width, "height": 900}, color_scheme=scheme)
    settled(tab)
    assert said == []
    assert asked[0] == origin and len(asked) > 4
    assert all(url.startswith(origin) for url in asked)
    assert tab.locator("main section h2").count() >= 6
    tab.context.close()
    # Measured by a script of the test, which the policy would refuse.
    tab, _, _ = opened(origin, viewport={"width": width, "height": 900}, bypass_csp=True)
    settled(tab)
    inside = tab.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert inside[0] <= inside[1]
    tab.context.close()


def test_its_figures_are_those_of_the_report(fleet: Receiving, opened: Any) -> None:
    tab, _, _ = opened(f"http://127.0.0.1:{fleet.port}/#days=7&baseline=3")
    settled(tab)
    (entry,) = told(fleet, "by=&days=7&baseline_days=3")["cohorts"]
    for name in FIGURES:
        assert figures(tab, "#health", name) == [entry[name]]
    assert figures(tab, "#health", "p99") == [entry["latency_s"]["device"]["p99"]]
    flagged = sum(one["flagged"] is True for one in entry["drift"].values())
    assert flagged and figures(tab, "#health", "drifted") == [flagged]
    low, high = entry["error_rate_ci95"]
    assert low < entry["error_rate"] < high
    tile = tab.locator("#health .tile", has_text="errors").text_content()
    assert f"{entry['error_rate'] * 100:.2f} %" in tile
    for feature, one in entry["drift"].items():
        for distance, found in one["distances"].items():
            assert figures(tab, "#from-days", f"{feature} {distance}") == [found["value"]]
    versions = told(fleet, "by=model,version&days=7&baseline_days=3")["cohorts"]
    versions.sort(key=lambda one: -one["requests"])
    for name in FIGURES:
        assert figures(tab, "#versions", name) == [one[name] for one in versions]
    for rank in ("p50", "p90", "p99"):
        wanted = [one["latency_s"]["device"][rank] for one in versions]
        assert figures(tab, "#versions", rank) == wanted
    # The error of percentiles, and what is suppressed, are said.
    assert "within 1.08 %" in tab.locator("#versions").text_content()
    note = tab.locator("#suppressed").text_content()
    assert "fewer than k = 10 devices: suppressed" in note
    assert "ipad" not in tab.content()
    # A red dot for a day beyond its limit, and the limit's line.
    assert tab.locator("#drift .dot.beyond").count() >= 2
    assert tab.locator("#drift .limit").count() >= 1
    tab.context.close()


def test_the_canary_is_compared_with_the_control(fleet: Receiving, opened: Any) -> None:
    view = "#model=net&device=pixel-8&days=7&control=1.0&canary=1.1"
    tab, said, _ = opened(f"http://127.0.0.1:{fleet.port}/{view}")
    settled(tab)
    path = "/v1/canary?control=1.0&canary=1.1&model=net&device=pixel-8&days=7"
    found = json.loads(fleet.get(path)[1])
    assert found["worse"] is True
    assert figures(tab, "#canary", "failed") == [
        found["control"]["failed"], found["canary"]["failed"]
    ]  # fmt: skip
    assert tab.locator("#canary .badge.failed").count() == 1
    tab.locator("#control").select_option("1.1")
    tab.wait_for_url("**control=1.1**")
    settled(tab)
    assert said == []
    tab.context.close()


def test_a_view_is_in_the_address(fleet: Receiving, opened: Any) -> None:
    origin = f"http://127.0.0.1:{fleet.port}/"
    tab, said, asked = opened(origin)
    settled(tab)
    tab.locator("#devices a", has_text="pixel-8").click()
    tab.wait_for_url("**#device=pixel-8")
    settled(tab)
    (entry,) = told(fleet, "by=&device=pixel-8&days=7")["cohorts"]
    tab.wait_for_selector(f"#health data[data-figure=requests][value='{entry['requests']}']")
    tab.locator("#versions a", has_text="1.1").click()
    tab.wait_for_url("**version=1.1**")
    (one,) = told(fleet, "by=&device=pixel-8&version=1.1&model=net&days=7")["cohorts"]
    wanted = f"#health data[data-figure=requests][value='{one['requests']}']"
    tab.wait_for_selector(wanted)
    # The same address shows the same to someone else, and the way back works.
    other, _, _ = opened(tab.url)
    other.wait_for_selector(wanted)
    other.context.close()
    tab.go_back()
    tab.wait_for_selector(f"#health data[data-figure=requests][value='{entry['requests']}']")
    tab.locator(".filter a").first.click()
    tab.wait_for_selector(".filter", state="detached")
    assert said == []
    assert all(url.startswith(origin) for url in asked)
    tab.context.close()


def test_a_name_that_would_be_a_script_is_text(fleet: Receiving, opened: Any) -> None:
    origin = f"http://127.0.0.1:{fleet.port}/"
    tab, said, asked = opened(origin)
    settled(tab)
    assert tab.locator("#apps th", has_text=HOSTILE).count() == 1
    tab.locator("#apps a", has_text=HOSTILE).click()
    tab.wait_for_selector(".filter")
    assert tab.locator("h1").text_content() == HOSTILE
    settled(tab)
    assert tab.title() == "edgekit fleet"
    assert tab.locator("img").count() == 0 and tab.locator("script").count() == 1
    assert said == [] and all(url.startswith(origin) for url in asked)
    # Nor one that comes by a link that somebody was sent.
    shared, said, _ = opened(f"{origin}#app={quote(HOSTILE)}&model={quote(HOSTILE)}")
    settled(shared)
    assert shared.title() == "edgekit fleet" and said == []
    assert "Nothing to show" in shared.locator("#health").text_content()
    for page in (tab, shared):
        page.context.close()


def test_the_policy_holds_where_something_gets_in(fleet: Receiving, browser: Any) -> None:
    """The page as it would be were a name not escaped: its script and its request are refused."""
    page = browser.new_context().new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    inject = '<script>document.title = "ran"</script><img src="http://127.0.0.1:9/x.png">'

    def spoilt(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text().replace("<footer>", f"{inject}<footer>"))

    page.route(f"http://127.0.0.1:{fleet.port}/", spoilt)
    page.goto(f"http://127.0.0.1:{fleet.port}/")
    settled(page)
    assert page.title() == "edgekit fleet"
    assert sum("Content Security Policy" in text for text in said) == 2
    page.context.close()


def test_drift_from_bundles_is_told(
    tmp_path: Path,
    opened: Any,
    bundle_contents: tuple[dict[str, bytes], dict[str, Any]],
    write_directory: Callable[..., Path],
) -> None:
    rng = np.random.default_rng(6)
    files, manifest = bundle_contents
    known = proven_on(0.3 + 0.7 * rng.beta(6, 2, 2_000))
    path = write_directory(tmp_path / "b", files, manifest | {"reference_statistics": known})
    with Bundle.open(path) as bundle:
        digest = bundle.digest
    with DuckStore(tmp_path / "fleet.duckdb") as store:
        for back, shape in ((0, 3), (1, 6)):
            records = []
            for _ in range(15):
                aggregate = Aggregate()
                for value in 0.3 + 0.7 * rng.beta(shape, 2, 100):
                    aggregate.add("device", "sure", 0.01, float(value), 3, None)
                resource = {**RESOURCE, "edgekit.bundle.digest": digest}
                when = NOW - back * DAY_NS
                records.append(metrics_record(aggregate, resource=resource, time_ns=when))
            store.write(read_metrics(otlp.request(records)).deliveries)
    with receiver(tmp_path / "fleet.duckdb", "--reference", path) as fleet:
        tab, said, _ = opened(f"http://127.0.0.1:{fleet.port}/")
        settled(tab)
        (entry,) = told(fleet, "by=&days=7&series=day")["cohorts"]
        psi = entry["reference_drift"]["features"]["prediction.confidence"]["distances"]["psi"]
        feature = "prediction.confidence psi"
        assert figures(tab, "#from-bundles", feature) == [psi["value"]]
        days = [day["reference_drift"]["features"]["prediction.confidence"]["flagged"]
                for day in entry["series"]]  # fmt: skip
        assert days == [False, True]
        assert tab.locator("#from-bundles .dot.beyond").count() >= 1
        assert said == []
        tab.context.close()


def test_a_key_is_asked_for_and_stays_out_of_the_address(tmp_path: Path, opened: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"ops admin {KEY}\ndevice a-key-of-devices-only\n")
    keys.chmod(0o600)
    fill(tmp_path / "fleet.duckdb")
    with receiver(tmp_path / "fleet.duckdb", "--keys", keys) as fleet:
        tab, _, asked = opened(f"http://127.0.0.1:{fleet.port}/")
        settled(tab, "failed")
        assert tab.locator("main section").count() == 0
        tab.locator("#key").fill("a-key-of-devices-only")
        tab.locator("#ask button").click()
        tab.wait_for_selector("#ask-why:has-text('may send, not read')")
        tab.locator("#key").fill(KEY)
        with tab.expect_request("**/v1/report*") as request:
            tab.locator("#ask button").click()
        assert request.value.headers["authorization"] == f"Bearer {KEY}"
        settled(tab)
        (entry,) = told(fleet, "by=&days=7", KEY)["cohorts"]
        assert figures(tab, "#health", "requests") == [entry["requests"]]
        assert tab.locator("#ask").is_hidden()
        tab.reload()
        settled(tab)
        assert not [url for url in [*asked, tab.url] if KEY in url]
        tab.locator("#forget").click()
        settled(tab, "failed")
        tab.context.close()

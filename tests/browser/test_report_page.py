"""A report in headless Chromium: no error, no request, no overflow, on phones and wide screens.

The page is of a real run: the recipe of `tests/report`, through the engine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit.cli.main import main

RECIPE = Path(__file__).resolve().parents[1] / "report" / "recipe.py"
SECTIONS = {"results", "gates", "training", "sensitivity", "sizes", "classes", "worst", "lineage",
            "settings", "facts"}  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The report of two runs, of which the second was told something else."""
    root = tmp_path_factory.mktemp("browser")
    before = os.environ.get("EDGEKIT_STORE")
    os.environ["EDGEKIT_STORE"] = str(root / "store")
    try:
        runs = [root / "first", root / "second"]
        # The second takes what was trained from the cache, and measures nothing.
        for run, told in zip(runs, ("bench=true", "bench=false"), strict=True):
            code = main(["run", str(RECIPE), "-s", told, "-s", "samples=120", "-o", str(run)])
            assert code in (0, 1) and (run / "run.json").is_file()
        place = root / "report.html"
        assert main(["report", *map(str, runs), "-o", str(place), "-q"]) == 0
        yield place
    finally:
        if before is None:
            del os.environ["EDGEKIT_STORE"]
        else:
            os.environ["EDGEKIT_STORE"] = before


@pytest.mark.parametrize("width", [320, 390, 768, 1024, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_quiet_and_fits(opened: Any, page: Path, width: int, scheme: str) -> None:
    tab, said, asked = opened(
        page.as_uri(), viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    assert said == []
    assert asked == [page.as_uri()]
    assert set(tab.eval_on_selector_all("main section", "all => all.map(e => e.id)")) == SECTIONS
    assert tab.locator("main section .note.missing:has-text('Nothing to show')").count() == 0
    tab.eval_on_selector_all("details", "all => all.forEach(d => d.open = true)")
    inside = tab.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert inside[0] <= inside[1]
    pictures = tab.eval_on_selector_all("img", "all => all.map(i => i.naturalWidth)")
    assert len(pictures) == 48 and min(pictures) == 8
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    tab.context.close()


@pytest.mark.parametrize("width", [360, 1280])
def test_one_drawing_of_each_is_shown_and_its_texts_do_not_cover_each_other(
    opened: Any, page: Path, width: int
) -> None:
    tab, _, _ = opened(page.as_uri(), viewport={"width": width, "height": 900})
    covered = tab.evaluate("""() => {
      const found = [];
      for (const svg of document.querySelectorAll('svg')) {
        if (!svg.getClientRects().length) continue;
        const texts = [...svg.querySelectorAll('text')].map(t => [t, t.getBoundingClientRect()]);
        for (const [t, a] of texts) for (const [u, b] of texts) {
          if (t === u) continue;
          const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
          const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
          if (wide > 2 && high > 5)
            found.push([svg.getAttribute('aria-label'), t.textContent, u.textContent, wide, high]);
        }
      }
      return found;
    }""")
    assert covered == []
    shown = tab.evaluate(
        "[...document.querySelectorAll('div.wide')].map(e => [e, e.nextElementSibling])"
        ".filter(p => p.every(e => e.getClientRects().length) ||"
        " p.every(e => !e.getClientRects().length)).length"
    )
    assert shown == 0
    tab.context.close()


def test_it_works_without_scripts_and_on_paper(opened: Any, page: Path) -> None:
    tab, said, asked = opened(page.as_uri(), java_script_enabled=False)
    assert tab.locator("h2").count() == len(SECTIONS)
    tab.context.close()
    tab, _, _ = opened(page.as_uri())
    printed = tab.pdf(format="A4")
    assert printed.startswith(b"%PDF") and len(printed) > 20_000
    assert said == [] and asked == [page.as_uri()]
    tab.context.close()


def test_a_label_that_would_be_a_script_is_text(opened: Any, page: Path) -> None:
    tab, _, _ = opened(page.as_uri())
    assert tab.evaluate("document.scripts.length") == 0
    assert tab.locator("text=<script>alert(1)</script>").count() > 0
    tab.context.close()


def test_the_policy_holds_where_something_gets_in(opened: Any, page: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt.html"
    inject = '<script>document.title = "ran"</script><img src="http://127.0.0.1:9/x.png">'
    spoilt.write_text(page.read_text().replace("<footer>", f"{inject}<footer>"))
    tab, said, asked = opened(spoilt.as_uri())
    assert tab.title() != "ran"
    assert sum("Content Security Policy" in s for s in said) == 2
    assert not [url for url in asked if url.startswith("http")] or any(
        s.startswith("failed: http") for s in said
    )
    tab.context.close()


def test_the_run_behind_it_says_the_same(page: Path) -> None:
    run = json.loads((page.parent / "first" / "run.json").read_text())
    top1 = next(s["value"] for s in run["stages"] if s["name"] == "answers")["artifact"]
    assert f"{top1:.2f} % top-1 on 120 samples" in page.read_text()

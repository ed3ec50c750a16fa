"""The page: what is on it, that it is text and not markup, and that it loads nothing."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgekit.cli.main import main
from edgekit.errors import BadData, TrustError, UsageError
from edgekit.report.page import build, write
from edgekit.schemas import validate

RunWriter = Callable[..., Path]

SECTIONS = ("results", "gates", "training", "sensitivity", "sizes", "classes", "worst", "lineage",
            "settings", "facts")  # fmt: skip
VOID = {"meta", "link", "img", "br", "rect", "circle", "line", "path"}


class Reader(HTMLParser):
    """A page as a browser sees it, without running anything."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID or tag in ("rect", "circle", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def said(self) -> str:
        return " ".join(" ".join(self.text).split())


def shown(html: str, section: str) -> Reader:
    [part] = re.findall(rf'<section id="{section}".*?</section>', html, re.S)
    return Reader(part)


def test_every_section_of_a_whole_run_is_there(write_run: RunWriter) -> None:
    page = build([write_run()])
    assert tuple(s.id for s in page.sections) == SECTIONS
    assert [s.id for s in page.sections if s.reason] == []
    reader = Reader(page.html)
    assert reader.unbalanced == [] and reader.open == []
    ids = [a["id"] for _, a in reader.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = {a["href"] for t, a in reader.tags if t == "a"}
    assert links == {f"#{s}" for s in (*SECTIONS, "main")}


def test_names_are_text_and_never_markup(write_run: RunWriter) -> None:
    page = build([write_run()])
    tags = {t for t, _ in Reader(page.html).tags}
    assert not tags & {"script", "iframe", "object", "embed", "form", "audio", "video", "a:href"}
    evil = "<script>alert('x')</script>"
    for section in ("gates", "sensitivity", "settings", "lineage"):
        assert evil in shown(page.html, section).said(), section
    assert all(not name.startswith("on") for _, a in Reader(page.html).tags for name in a)


def test_nothing_is_loaded_from_anywhere(write_run: RunWriter) -> None:
    html = build([write_run()]).html
    tags = Reader(html).tags
    [policy] = [a["content"] for t, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    # The policy comes before anything that it is about.
    assert html.index("Content-Security-Policy") < html.index("<link")
    for name, attributes in tags:
        for key in ("src", "href", "srcset", "xlink:href", "action", "poster", "data"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:", "#")), (name, key, value)
    assert not re.search(r"https?:|@import|url\(|@font-face", html)
    pictures = [a for t, a in tags if t == "img"]
    assert len(pictures) == 5
    assert all(str(a["src"]).startswith("data:image/png;base64,") and a["alt"] for a in pictures)


def test_every_chart_says_what_it_shows_and_has_its_figures_beside_it(write_run: RunWriter) -> None:
    page = build([write_run()])
    drawings = re.findall(r"<svg.*?</svg>", page.html, re.S)
    assert len(drawings) > 15
    for drawing in drawings:
        assert re.match(r"<svg[^>]* role=\"img\" aria-label=\"[^\"]+\"", drawing)
        assert re.match(r"<svg[^>]*><title>[^<]+</title><desc>[^<]+</desc>", drawing)
        assert "nan" not in drawing and "inf" not in re.sub(r"<(title|desc).*?</\1>", "", drawing)
    for section in SECTIONS[:-1]:
        tags = Counter(t for t, _ in shown(page.html, section).tags)
        assert section == "worst" or tags["table"] >= 1, section


def test_a_verdict_is_a_word_and_a_sign(write_run: RunWriter) -> None:
    said = shown(build([write_run()]).html, "gates").said()
    assert "✕ FAILED max-drop null-w8a8 1 2.5" in said
    assert "? not judged faster the whole" in said
    assert "✓ held parity null-w8a8 plan runtime" in said
    # What the stage of the export told of as well is told once.
    assert said.count("max-drop") == 1


def test_the_pareto_front_is_marked(write_run: RunWriter) -> None:
    html = build([write_run()]).html
    said = shown(html, "results").said()
    assert re.search(r"null-w8a8 w8a8 87\.50 % 2\.50 \[0\.50, 4\.50\] 0\.050 ms .* front", said)
    assert "? not measured on it" in said and "✓ 0.050 ms p50, measured" in said


def test_curves_of_one_quantity_share_a_picture_and_runs_are_told_apart(
    write_run: RunWriter,
) -> None:
    one = write_run("one", settings={"rate": 0.1})
    two = write_run("two", loss=2.0, settings={"rate": 0.2})
    html = build([one, two]).html
    drawn = re.findall(r"aria-label=\"([^\"]+)\" class=\"chart curves\"", html)
    assert drawn == ["loss of trained", "score of trained"]
    said = shown(html, "training").said()
    assert "A: chain (one); B: chain (two)" in said
    for end in ("A train 0.2", "B train 0.4", "A val 0.3333", "B val 0.6667", "A 90", "B 90"):
        assert end in said, end
    settings = shown(html, "settings").said()
    assert re.search(r"rate 0\.1 0\.2 \? differs", settings)
    assert not re.search(r"train\.epochs 5 5 \? differs", settings)


def test_lineage_leads_from_the_data_to_the_artifacts(write_run: RunWriter) -> None:
    root = write_run()
    html = build([root]).html
    [drawing] = re.findall(r"<div class=\"wide\">(<svg[^>]*lineage.*?)</svg>", html, re.S)
    manifest = json.loads((root / "exported" / "bundle" / "manifest.json").read_text())
    order = [drawing.index(f">{n}<") for n in ("digits", "trained", "exported", "null-w8a8")]
    assert order == sorted(order)
    assert "dddddddddddd" in drawing
    for artifact in manifest["artifacts"]:
        assert artifact["sha256"][:12] in drawing
    assert 'class="node failed"' in drawing


def test_the_same_run_gives_the_same_bytes(write_run: RunWriter, tmp_path: Path) -> None:
    root = write_run()
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    for place in pages:
        write(build([root]), place)
    assert pages[0].read_bytes() == pages[1].read_bytes()
    assert not list(tmp_path.glob(".*.html"))


# -- what a source may be -------------------------------------------------------------------------


def test_an_export_alone_and_a_bundle_alone_say_what_they_lack(
    write_run: RunWriter, null_bundle: Path, tmp_path: Path
) -> None:
    document = write_run() / "exported" / "export.json"
    page = build([document])
    assert [s.id for s in page.sections if not s.reason] == ["results", "gates", "sizes"]
    assert all("edgekit" in (s.reason or "edgekit") or "name the run" in (s.reason or "")
               for s in page.sections)  # fmt: skip
    packed = tmp_path / "chain.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(p for p in null_bundle.rglob("*") if p.is_file()):
            archive.write(path, path.relative_to(null_bundle))
    for bundle in (null_bundle, packed):
        page = build([bundle])
        assert [s.kind for s in page.sources] == ["bundle"]
        said = shown(page.html, "results").said()
        assert "Latency was not measured" in said and "Accuracy is not known" in said
        assert "the bundle keeps no proof of it" in shown(page.html, "gates").said()


def test_files_of_tensors_are_told_by_layer(write_run: RunWriter) -> None:
    root = write_run()
    folder = root / "plan"
    tensors = {"body.0.weight": np.ones((30, 100), np.float32), "body.0.bias": np.ones(30),
               "tail": np.ones(10, np.float32)}  # fmt: skip
    save_file(tensors, folder / "weights.safetensors")
    (folder / "broken.safetensors").write_bytes(b"\x09\0\0\0\0\0\0\0{broken}")
    document = json.loads((root / "run.json").read_text())
    for name in ("weights", "broken"):
        path = folder / f"{name}.safetensors"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entry = {"path": path.name, "bytes": path.stat().st_size, "sha256": digest}
        document["stages"][1]["files"].append(entry)
    (root / "run.json").write_text(json.dumps(document))
    page = build([root])
    said = shown(page.html, "sizes").said()
    assert "Tensors of the file, 3 040 elements. Together 12.0 KiB" in said
    assert "plan/broken.safetensors is no .safetensors file" in page.sources[0].missing[0]
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(TrustError, match=r"weights\.safetensors is not the file"):
        build([root])


def test_two_of_one_name_are_told_apart(write_run: RunWriter) -> None:
    root = write_run()
    assert [s.title for s in build([root, root]).sources] == ["chain (run)", "chain (run) (2)"]


def test_a_file_that_is_gone_is_missed_aloud(write_run: RunWriter) -> None:
    root = write_run()
    shutil.rmtree(root / "plan")
    (root / "answers" / "pictures" / "worst-00.png").unlink()
    page = build([root])
    [source] = page.sources
    assert "plan/quantize.json is not there" in source.missing
    assert "answers/pictures/worst-00.png is not there" in source.missing
    assert "plan/quantize.json is not there" in Reader(page.html).said()
    assert [s.id for s in page.sections if s.reason] == ["sensitivity"]
    assert "the picture is not there" in shown(page.html, "worst").said()


@pytest.mark.parametrize("name", ["exported/export.json", "answers/evidence.json"])
def test_a_file_that_was_changed_is_refused(write_run: RunWriter, name: str) -> None:
    root = write_run()
    path = root / name
    path.write_text(path.read_text().replace("87.5", "99.5").replace('"n": 40', '"n": 41'))
    with pytest.raises(TrustError, match=re.escape(name)):
        build([root])


@pytest.mark.parametrize("name", ["../outside.json", "/etc/hosts.json", "a/../../b.json"])
def test_a_run_reaches_nothing_outside_of_its_folder(write_run: RunWriter, name: str) -> None:
    root = write_run()
    document = json.loads((root / "run.json").read_text())
    document["stages"][0]["files"] = [{"path": name, "bytes": 1, "sha256": "0" * 64}]
    (root / "run.json").write_text(json.dumps(document))
    (root.parent / "outside.json").write_text("{}")
    with pytest.raises(TrustError, match="leads out of the run's folder"):
        build([root])


def test_other_things_are_refused_with_what_is_taken(write_run: RunWriter, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        build([tmp_path / "none"])
    with pytest.raises(BadData, match=r"neither run\.json nor manifest\.json"):
        build([tmp_path])
    other = tmp_path / "other.json"
    other.write_text('{"schema": "edgekit.doctor/1"}')
    with pytest.raises(BadData, match=r"edgekit\.doctor/1"):
        build([other])
    other.write_text("not json")
    with pytest.raises(BadData, match="is no JSON"):
        build([other])
    root = write_run()
    document = json.loads((root / "run.json").read_text())
    document["stages"][0]["wall_s"] = "long"
    (root / "run.json").write_text(json.dumps(document))
    with pytest.raises(BadData, match=r"\$\.stages\[0\]\.wall_s"):
        build([root])


# -- the command ----------------------------------------------------------------------------------


def test_the_command_writes_the_page_and_tells_of_it(
    write_run: RunWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, place = write_run(), tmp_path / "pages" / "report.html"
    assert main(["report", str(root), "-o", str(place), "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    validate(document)
    assert document["bytes"] == place.stat().st_size
    assert document["gates"] == {"held": 2, "failed": 1, "not_judged": 1}
    assert document["sources"][0]["documents"] == [
        "edgekit.bundle/1", "edgekit.evidence/1", "edgekit.export/1", "edgekit.quantize/1",
    ]  # fmt: skip
    before = place.read_bytes()
    assert main(["report", str(tmp_path), "-o", str(place)]) == 7
    assert main(["report", str(root), "-o", str(tmp_path)]) == 2
    assert main(["report"]) == 2
    assert place.read_bytes() == before
    assert "edgekit: error: " in capsys.readouterr().err


def test_without_jinja2_the_message_names_the_command(
    write_run: RunWriter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgekit.report import page

    page._template.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["report", str(write_run())]) == 3
    assert "pip install 'edgekit[recipes]'" in capsys.readouterr().err

"""Tables and JSON lines of texts and labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.data import Samples, load, load_pair
from edgekit.errors import BadData
from edgekit.runtime.preprocess import ImagePreprocess, TextPreprocess
from edgekit.signature import Signature, TensorSpec

PICTURE = Signature(
    (TensorSpec("image", (1, 3, 8, 8), layout="NCHW"),), (TensorSpec("logits", (1, 3)),)
)
RESIZE = ImagePreprocess(8, 8, mean=(0.5,) * 3, std=(0.25,) * 3)
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "a", "0", "1")
TOKENS = TextPreprocess(vocab=PIECES, max_length=6)
TEXT = Signature(
    (
        TensorSpec("input_ids", (1, 6), "int64", high=9),
        TensorSpec("attention_mask", (1, 6), "int64", high=1),
    ),
    (TensorSpec("logits", (1, 2), labels=("neg", "pos")),),
)
PLAIN_TEXT = Signature(TEXT.inputs, (TensorSpec("logits", (1, 2)),))


def take(spec: str | Path, signature: Signature, **options: Any) -> Samples:
    options = {"preprocess": None, "split": "eval", **options}
    return load(spec, signature=signature, **options)


def labels(samples: Samples) -> list[int | None]:
    return [samples.label(i) for i in range(len(samples))]


ROWS = [("good film", 1), ('bad , film "', 0), ("a good bad film a good bad film", 0)]


def write_rows(path: Path, header: str = "", swap: bool = False, names: Any = None) -> Path:
    """The rows in the format that the file's ending says."""
    named = [(text, names[label] if names else label) for text, label in ROWS]
    if path.suffix == ".jsonl":
        lines = [json.dumps({"text": t, "label": n}) for t, n in named]
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        quoted = [
            (t if path.suffix == ".tsv" else '"' + t.replace('"', '""') + '"', n) for t, n in named
        ]
        lines = [separator.join(map(str, (n, t) if swap else (t, n))) for t, n in quoted]
        if header:
            lines.insert(0, header.replace(",", separator))
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
@pytest.mark.parametrize("header", ["", "text,label", "Sentence,Label", "phrase,score"])
@pytest.mark.parametrize("swap", [False, True])
def test_texts_in_every_format(tmp_path: Path, suffix: str, header: str, swap: bool) -> None:
    if swap:
        header = ",".join(reversed(header.split(",")))
    path = write_rows(tmp_path / f"d{suffix}", header, swap)
    got = take(path, TEXT, preprocess=TOKENS)
    assert labels(got) == [1, 0, 0]
    for i, (text, _) in enumerate(ROWS):
        feed = got.feed(i)
        TEXT.check_inputs(feed, what="feed")
        want = TOKENS.apply(text)
        for name, value in want.items():
            np.testing.assert_array_equal(feed[name], value)


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
@pytest.mark.parametrize("signature", [TEXT, PLAIN_TEXT])
@pytest.mark.parametrize("header", ["", "text,label"])
def test_labels_by_name(tmp_path: Path, suffix: str, signature: Signature, header: str) -> None:
    path = write_rows(tmp_path / f"d{suffix}", header, names=("neg", "pos"))
    assert labels(take(path, signature, preprocess=TOKENS)) == [1, 0, 0]


def test_more_text_layouts(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"

    def read(content: str, name: str = "d.csv") -> list[int | None]:
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return labels(take(path, TEXT, preprocess=TOKENS))

    assert read("id,sentence,label,more\n7,good film,1,x\n8,bad,0,y\n") == [1, 0]
    assert read("\ufefftext;label\r\ngood, film;1\r\nbad;0\r\n") == [1, 0]
    assert read('text,label\n"two\nlines",1\n') == [1]
    assert read("text\ngood film\nbad\n") == [None, None]
    assert read("good film\nbad film\n", "d.tsv") == [None, None]
    assert read('"good"\n\n"bad"\n', "d.jsonl") == [None, None]
    assert read('["good", 1]\n["bad", 0]\n', "d.jsonl") == [1, 0]
    assert read("good\t\nbad\t\n", "d.tsv") == [None, None]
    assert path.exists()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("d.tsv", b"good\t1\nbad\t7\n", r"line 2: label 7 is no class \(0 to 1\)"),
        ("d.tsv", b"good\t1\nbad\t-1\n", "line 2: label -1"),
        ("d.tsv", b"good\t1\nbad\t\n", "line 2 has no label"),
        ("d.tsv", b"good\t1\nbad\n", "line 2 does not have the 2 columns"),
        ("d.tsv", b"a\tb\tc\n", "3 columns and no header"),
        ("d.tsv", b"good\tpos\nbad\tnegg\n", "label 'negg' is none.*Did you mean 'neg'"),
        ("d.csv", b'text,label\n"good,1\n', "is no CSV"),
        ("d.csv", b"text,label\n\xff\xfe,1\n", "not UTF-8"),
        ("d.csv", b"", "holds no texts"),
        ("d.csv", b"text,label\n", "holds no texts"),
        ("d.jsonl", b'{"text": "good", "label": 1}\n{"text": ', "line 2 is no JSON"),
        ("d.jsonl", b'{"words": "good", "label": 1}\n', "line 1 holds no text"),
        ("d.jsonl", b'{"text": "good", "label": 1.5}\n', "label 1.5 is no class"),
        ("d.jsonl", b'{"text": "good", "label": [1]}\n', "is no class"),
        ("d.jsonl", b'{"text": "good", "label": 1}\n{"text": "bad"}\n', "line 2 has no label"),
        ("d.jsonl", b"[" * 100_000 + b"\n", "line 1 is no JSON"),
    ],
)
def test_texts_that_are_malformed_are_refused(
    tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadData, match=f"(?s){complaint}") as caught:
        take(path, TEXT, preprocess=TOKENS)
    assert name in caught.value.message


def test_texts_need_a_tokenizer_that_fits(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "d.tsv")
    with pytest.raises(BadData, match="no tokenizer"):
        take(path, TEXT)
    with pytest.raises(BadData, match="no tokenizer"):
        take(path, PICTURE, preprocess=RESIZE)
    longer = TextPreprocess(vocab=PIECES, max_length=7)
    with pytest.raises(BadData, match=r"'input_ids' is \(1, 7\), wanted \(n, 6\)"):
        take(path, TEXT, preprocess=longer)
    renamed = TextPreprocess(vocab=PIECES, max_length=6, ids_name="tokens")
    with pytest.raises(BadData, match="also takes input_ids"):
        take(path, TEXT, preprocess=renamed)
    wider = TextPreprocess(vocab=(*PIECES, "extra"), max_length=6)
    with pytest.raises(BadData, match="ids reach 10; input 'input_ids' takes at most 9"):
        take(path, TEXT, preprocess=wider)


def test_a_model_with_ids_of_the_other_width_or_no_mask(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "d.tsv")
    narrow = Signature((TensorSpec("input_ids", (1, 6), "int32"),))
    feed = take(path, narrow, preprocess=TOKENS).feed(0)
    assert {name: str(a.dtype) for name, a in feed.items()} == {"input_ids": "int32"}


def test_texts_are_divided_by_content(tmp_path: Path) -> None:
    path = tmp_path / "d.tsv"
    lines = [f"film {'a ' * (i % 3)}{i}\t{i % 2}" for i in range(40)]
    path.write_text("\n".join(lines + lines[:20]) + "\n")
    calib, evaluation = load_pair(path, None, signature=TEXT, preprocess=TOKENS)
    assert len(calib) + len(evaluation) == 60
    texts = [{s.content(i) for i in range(len(s))} for s in (calib, evaluation)]  # type: ignore[attr-defined]
    assert not texts[0] & texts[1]

"""The tokenizer against that of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import BadData
from edgekit.runtime.preprocess import TextPreprocess

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
VOCAB = (
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS),
    "the", "un", "##aff", "##able", "want", "##ed", "run", "##ning", "cafe", "naive", "é", "ß",
    "\u03c3", "##\u03c3", "中", "文", ".", ",", "!", "?", "'", "-", "$", "^", "[", "]",
    "i̇", "「", "—",
)  # fmt: skip

AWKWARD = [
    "",
    "   \t\n",
    "UNwantéd, running!",
    "unaffable the cafe\u0301 naïve CAFÉ",
    "don't $5^2 -- well...really?!",
    "中文word中 「文」—x",
    "zero\u200bwidth nul\x00 repl\ufffd ctrl\x1b del\x7f",
    "nbsp\u00a0ideographic\u3000line\u2028para\u2029end\x85x\x0by",
    "ΣΊΣΥΦΟΣ straße İstanbul ŉ ǅ",
    "😀 emoji a😀b \U0001f970",
    "a" * 100 + " " + "a" * 101,
    "[CLS] literal [SEP] tokens [MASK][PAD] [sep] [UNK",
    "e\u0301e\u0301 \u1100\u1161 한국어 ﬁ ½",
    "one two three four five six seven eight nine ten eleven twelve thirteen",
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("lower_case", "strip_accents"), [(True, None), (False, None), (True, False), (False, True)]
)
def test_tokens_equal_those_of_transformers(lower_case: bool, strip_accents: bool | None) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertTokenizer(
        vocab={piece: i for i, piece in enumerate(VOCAB)},
        do_lower_case=lower_case,
        strip_accents=strip_accents,
    )
    ours = TextPreprocess(
        vocab=VOCAB, lower_case=lower_case, strip_accents=strip_accents, max_length=24
    )
    for text in AWKWARD:
        want = theirs(text, max_length=24, padding="max_length", truncation=True)
        got = ours.apply(text)
        assert got["input_ids"].tolist() == [want["input_ids"]], text
        assert got["attention_mask"].tolist() == [want["attention_mask"]], text


def test_text_names_dtype_and_segments() -> None:
    step = TextPreprocess(
        vocab=VOCAB, max_length=6, ids_name="tokens", mask_name="mask", types_name="types",
        dtype="int32",
    )  # fmt: skip
    got = step.apply("the cafe runs")
    pieces = [VOCAB[i] for i in got["tokens"][0]]
    assert pieces == ["[CLS]", "the", "cafe", "run", "##s", "[SEP]"]
    assert {name: (v.shape, str(v.dtype)) for name, v in got.items()} == dict.fromkeys(
        ("tokens", "mask", "types"), ((1, 6), "int32")
    )
    assert got["types"].sum() == 0
    assert got["mask"].tolist() == [[1] * 6]


def test_vocab_file(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(VOCAB) + "\n", encoding="utf-8")
    made = TextPreprocess.from_vocab_file(path, max_length=9)
    assert made == TextPreprocess(vocab=VOCAB, max_length=9)
    assert made.vocab_file() == path.read_bytes()
    with pytest.raises(BadData, match="one piece a line"):
        TextPreprocess(vocab=(*VOCAB, "a\nb")).vocab_file()
    with pytest.raises(BadData, match="cannot read the vocabulary"):
        TextPreprocess.from_vocab_file(tmp_path / "absent.txt")


@pytest.mark.parametrize(
    ("fields", "culprit"),
    [
        (dict(vocab=(*VOCAB, "the")), "twice"),
        (dict(vocab=("[PAD]", "[UNK]", "[CLS]")), "SEP"),
        (dict(vocab=(*VOCAB, 3)), "no string"),
        (dict(max_length=2), "max_length"),
        (dict(dtype="float32"), "dtype"),
        (dict(lower_case=1), "lower_case"),
        (dict(ids_name="x", mask_name="x"), "distinct"),
        (dict(mask_name=""), "distinct"),
    ],
)
def test_text_fields_are_checked(fields: dict[str, Any], culprit: str) -> None:
    with pytest.raises(BadData, match=culprit):
        TextPreprocess(**{"vocab": VOCAB, **fields})

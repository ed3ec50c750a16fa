"""The tokenizer of a Hugging Face folder as the device's own, and a check that both agree."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from edgekit.errors import BadData, GateFailed, UnsupportedError
from edgekit.runtime.preprocess import TextPreprocess
from edgekit.runtime.wordpiece import MAX_WORD_CHARS

__all__ = ["NASTY", "check_tokenizer", "tokenizer_of"]

SPECIAL: Final = ("unk", "cls", "sep", "pad", "mask")

NASTY: Final = (
    "",
    "   \t\r\n ",
    "Don't $5^2 -- well...really?! (no)",
    "na\u00efve caf\u00e9, cafe\u0301, \u00c5ngstr\u00f6m, stra\u00dfe, \u0130stanbul",
    "\u03a3\u038a\u03a3\u03a5\u03a6\u039f\u03a3 \u01c5 \u0149 \ufb01 \u00bd \u2168",
    "\u4e2d\u6587word\u4e2d \u300c\u6587\u300d\u2014x \ud55c\uad6d\uc5b4 \u1100\u1161 \u3042\u30ab",
    "zero\u200bwidth nul\x00 repl\ufffd ctrl\x1b del\x7f bom\ufeff joined\u200d\u200c",
    "nbsp\u00a0wide\u3000line\u2028para\u2029next\x85tab\x0bfeed\x0c",
    "\U0001f600 a\U0001f600b",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea \u0e44\u0e17\u0e22",
    "\u0939\u093f\u0928\u094d\u0926\u0940",
    "a" * MAX_WORD_CHARS + " " + "b" * (MAX_WORD_CHARS + 1),
    "[CLS] literal [SEP] tokens [MASK][PAD] [UNK] [sep] [CLS",
    "##ing ##s # # @user http://a.b/c?d=e&f=%20 a_b a-b a.b 1,000.5 12:30",
    "word " * 600,
    "\u00ad soft\u00adhyphen \u2060 \u061c \ue000 \U000e0041",
)  # fmt: skip
"""Strings that tokenizers tend to differ on."""


def tokenizer_of(folder: Path, max_length: int) -> TextPreprocess:
    """The folder's tokenizer, to be carried by a `Model`.

    Args:
        folder: has ``tokenizer.json`` or ``vocab.txt``.
        max_length: tokens of every sequence, frame and padding included.

    Raises:
        UnsupportedError: it is no WordPiece tokenizer of BERT's kind (says what differs).
        BadData: it can't be read, or its vocabulary has gaps.
        MissingDependency: transformers is not installed.
    """
    theirs = _theirs(folder)
    about = json.loads(theirs.backend_tokenizer.to_str())
    _check_kind(about, folder)
    ids: Mapping[str, int] = about["model"]["vocab"]
    by_id = {i: piece for piece, i in ids.items()}
    gap = next((i for i in range(len(by_id)) if i not in by_id), None)
    if gap is not None or len(by_id) != len(ids):
        raise BadData(f"{folder}: the vocabulary has no piece for id {gap}, or two for one id")
    named = {name: getattr(theirs, f"{name}_token") for name in SPECIAL}
    lacking = [name for name in SPECIAL if name != "mask" and named[name] is None]
    if lacking:
        raise UnsupportedError(f"{folder}: the tokenizer has no {lacking[0]} token")
    extra = {t["content"] for t in about["added_tokens"]} - set(named.values())
    if extra:
        raise UnsupportedError(
            f"{folder}: the tokenizer has tokens of its own beside BERT's: "
            f"{', '.join(sorted(extra)[:5])}"
        )
    normal = about["normalizer"]
    return TextPreprocess(
        vocab=tuple(by_id[i] for i in range(len(by_id))),
        lower_case=normal["lowercase"],
        strip_accents=normal["strip_accents"],
        max_length=max_length,
        **{k: v for k, v in named.items() if v is not None},
    )


def check_tokenizer(ours: TextPreprocess, folder: Path, texts: Iterable[str] = ()) -> int:
    """Holds a tokenizer against the one that transformers makes of a folder, id by id.

    Args:
        ours: the device's own, such as a bundle's.
        folder: of the model.
        texts: what to try beside `NASTY`.

    Returns:
        How many texts were tried.

    Raises:
        GateFailed: a text gets other ids, or another mask; shows it.
    """
    theirs = _theirs(folder)
    tried = 0
    for text in (*NASTY, *texts):
        want = theirs(text, max_length=ours.max_length, truncation=True, padding="max_length")
        got = ours.apply(text)
        for name, key in ((ours.ids_name, "input_ids"), (ours.mask_name, "attention_mask")):
            mine, wanted = got[name][0].tolist(), list(want[key])
            if mine != wanted:
                at = next(i for i, (a, b) in enumerate(zip(mine, wanted, strict=True)) if a != b)
                raise GateFailed(
                    f"{text[:80]!r} gets other {name} than in transformers: at {at} "
                    f"{mine[at]}, not {wanted[at]}",
                    hint=f"the vocabulary or its options are not those of {folder}",
                )
        tried += 1
    return tried


def _theirs(folder: Path) -> Any:
    from edgekit.sources.hugging_face import transformers

    library = transformers()
    try:
        found = library.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise BadData(f"{folder}: no tokenizer can be read: {_line(error)}") from error
    if not hasattr(found, "backend_tokenizer"):
        raise UnsupportedError(f"{folder}: the tokenizer is a {type(found).__name__}; {_WANTED}")
    return found


_WANTED = "taken: WordPiece as BERT has it (BertTokenizer, DistilBertTokenizer)"


def _check_kind(about: Mapping[str, Any], folder: Path) -> None:
    """Refuses what `edgekit.runtime.wordpiece` does not do."""
    model, normal = about["model"], about["normalizer"] or {}
    split = about["pre_tokenizer"] or {}
    found = {
        "model": model.get("type"),
        "normalizer": normal.get("type"),
        "pre_tokenizer": split.get("type"),
        "prefix": model.get("continuing_subword_prefix"),
        "longest word": model.get("max_input_chars_per_word"),
        "clean_text": normal.get("clean_text"),
        "handle_chinese_chars": normal.get("handle_chinese_chars"),
    }
    wanted = {
        "model": "WordPiece",
        "normalizer": "BertNormalizer",
        "pre_tokenizer": "BertPreTokenizer",
        "prefix": "##",
        "longest word": MAX_WORD_CHARS,
        "clean_text": True,
        "handle_chinese_chars": True,
    }
    for name, value in wanted.items():
        if found[name] != value:
            raise UnsupportedError(
                f"{folder}: the tokenizer's {name} is {found[name]}, not {value}; {_WANTED}"
            )


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__

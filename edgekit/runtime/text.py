"""From a text to the token ids that a model takes, the same way on every machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from edgekit.errors import BadData
from edgekit.runtime._fields import fields_of, require_int, require_one_of, tuple_of
from edgekit.runtime.wordpiece import WordPiece

__all__ = ["TextPreprocess"]


@dataclass(frozen=True)
class TextPreprocess:
    """A BERT-style WordPiece tokenizer with a fixed length.

    A text becomes ``[CLS] pieces [SEP]``, cut to ``max_length`` and padded with ``[PAD]``. Literal
    special tokens in the text count as such, as they do in ``BertTokenizerFast``.

    Attributes:
        vocab: the pieces; a piece's id is its position.
        lower_case: lower-case the text.
        max_length: tokens in the result, frame and padding included.
        strip_accents: drop accents; None does what ``lower_case`` does.
        ids_name: name of the input that takes the ids.
        mask_name: name of the input that takes 1 for tokens and 0 for padding.
        types_name: name of the input that takes segment ids, all 0 here; empty where there is none.
        dtype: ``int64`` or ``int32``.
        unk, cls, sep, pad: the special tokens; they must stand in ``vocab``.
        mask: the masking token; it need not.

    Raises:
        BadData: a field is out of its range, or a special token is not in the vocabulary.
    """

    vocab: tuple[str, ...]
    lower_case: bool = True
    max_length: int = 128
    strip_accents: bool | None = None
    ids_name: str = "input_ids"
    mask_name: str = "attention_mask"
    types_name: str = ""
    dtype: Literal["int64", "int32"] = "int64"
    unk: str = "[UNK]"
    cls: str = "[CLS]"
    sep: str = "[SEP]"
    pad: str = "[PAD]"
    mask: str = "[MASK]"

    def __post_init__(self) -> None:
        object.__setattr__(self, "vocab", tuple(self.vocab))
        if not all(isinstance(piece, str) for piece in self.vocab):
            raise BadData("preprocess vocab holds something that is no string")
        if len(self._ids) != len(self.vocab):
            raise BadData("preprocess vocab holds a piece twice")
        missing = [t for t in (self.unk, self.cls, self.sep, self.pad) if t not in self._ids]
        if missing:
            raise BadData(f"preprocess vocab lacks the special tokens {', '.join(missing)}")
        # Two places are the frame's; one must be left for the text.
        require_int("preprocess max_length", self.max_length, 3, 2**20)
        require_one_of("dtype", self.dtype, ("int64", "int32"))
        require_one_of("lower_case", self.lower_case, (True, False))
        require_one_of("strip_accents", self.strip_accents, (True, False, None))
        names = [n for n in (self.ids_name, self.mask_name, self.types_name) if n]
        if not self.ids_name or not self.mask_name or len(set(names)) != len(names):
            raise BadData(f"preprocess needs distinct names for ids and mask, not {names}")

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.vocab)}

    @cached_property
    def _tokenize(self) -> WordPiece:
        special = (self.unk, self.cls, self.sep, self.pad, self.mask)
        return WordPiece(
            ids=self._ids,
            special=tuple(token for token in special if token in self._ids),
            unknown=self.unk,
            lower_case=self.lower_case,
            strip_accents=self.lower_case if self.strip_accents is None else self.strip_accents,
        )

    def apply(self, text: str) -> dict[str, npt.NDArray[np.int64] | npt.NDArray[np.int32]]:
        """Turns one text into the model's inputs.

        Returns:
            ``ids_name`` and ``mask_name`` (and ``types_name`` if set), each ``[1, max_length]``.
        """
        pieces = self._tokenize(text)[: self.max_length - 2]
        ids = [self._ids[self.cls], *pieces, self._ids[self.sep]]
        padding = self.max_length - len(ids)
        rows = {
            self.ids_name: ids + [self._ids[self.pad]] * padding,
            self.mask_name: [1] * len(ids) + [0] * padding,
        }
        if self.types_name:
            rows[self.types_name] = [0] * self.max_length
        return {name: np.array([row], dtype=self.dtype) for name, row in rows.items()}

    @classmethod
    def from_vocab_file(cls, path: str | Path, **fields: Any) -> Self:
        """A tokenizer out of BERT's ``vocab.txt``: one piece per line, in order of id.

        Args:
            path: the file, UTF-8.
            fields: the other fields of the class.

        Raises:
            BadData: the file is absent or unreadable, or a field is wrong.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise BadData(f"cannot read the vocabulary {path}: {error}") from error
        # The file ends with a newline; an empty line within it would be a piece.
        pieces = lines[:-1] if lines[-1] == "" else lines
        return cls(vocab=tuple(piece.removesuffix("\r") for piece in pieces), **fields)

    def vocab_file(self) -> bytes:
        """What `from_vocab_file` reads: BERT's ``vocab.txt``, UTF-8.

        Raises:
            BadData: a piece holds the end of a line.
        """
        broken = next((p for p in self.vocab if "\n" in p or p.endswith("\r")), None)
        if broken is not None:
            raise BadData(f"piece {broken!r} can't stand in a file of one piece a line")
        return "".join(f"{piece}\n" for piece in self.vocab).encode("utf-8")

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary with ``"kind": "text"`` and every field."""
        return {"kind": "text", **asdict(self), "vocab": list(self.vocab)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            BadData: a field is missing, unknown, or wrong.
        """
        values = fields_of(cls, "text", data)
        return cls(**{**values, "vocab": tuple_of(values, "vocab")})

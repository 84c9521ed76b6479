"""Text as token numbers: a word-level vocabulary from the train split, sequences of one length.

Token 0 is padding, token 1 a word that is not in the vocabulary, the others are words, the
commonest first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from fl_audit.errors import InputError

PADDING, UNKNOWN = 0, 1
_FIRST_WORD = 2
_WORD = re.compile(r"\w+|[^\w\s]")  # a run of letters and digits, or one other sign


class TextSettings(BaseModel):
    """How a column of text becomes token numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    words: int = Field(default=8000, ge=1)
    """Size of the vocabulary, without padding and the unknown word; fewer if there are fewer."""
    length: int = Field(default=32, ge=1)
    """Tokens of a sequence: longer texts are cut, shorter ones padded at the end."""


def text_settings(settings: Mapping[str, JsonValue]) -> TextSettings:
    """Settings of a column of text from `[data.settings]`.

    Raises:
        InputError: Naming the first that is wrong.
    """
    try:
        return TextSettings.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise InputError(
            f"data.settings.{name}",
            first["input"],
            first["msg"],
            f"A column of text takes: {', '.join(TextSettings.model_fields)}.",
        ) from error


def vocabulary(texts: Sequence[str], num_words: int) -> dict[str, int]:
    """Word: its token, for the commonest words of some texts; ties in the order of the alphabet."""
    counts = Counter(word for text in texts for word in split_words(text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[:num_words]
    return {word: token for token, word in enumerate(ranked, start=_FIRST_WORD)}


def encode(texts: Sequence[str], known: Mapping[str, int], length: int) -> NDArray[np.int64]:
    """Token numbers of texts, shape (n, length)."""
    tokens = np.full((len(texts), length), PADDING, dtype=np.int64)
    for row, text in zip(tokens, texts, strict=True):
        found = [known.get(word, UNKNOWN) for word in split_words(text)[:length]]
        row[: len(found)] = found
    return tokens


def split_words(text: str) -> list[str]:
    """Words and signs of a text, in small letters."""
    return _WORD.findall(text.lower())

"""CLIP's lower-cased byte-pair encoding: the ids of open_clip's tokenizer, several times as fast.

Where the time goes, and what is done about it:

- Repairing and splitting. Most captions are plain ASCII, in which nothing needs repair (`_NOT_PLAIN`) and
  letters are found without Unicode's tables (`_PLAIN_WORDS`); in most others only quotes are to be made
  straight (`_TAME`).
- Merging. Words repeat, so the ids of a word are kept; a new word is merged by the Rust library `tokenizers`.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import ftfy
import numpy as np
import regex  # type: ignore[import-untyped]
import tokenizers
import torch
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

START, END = "<start_of_text>", "<end_of_text>"
WORD_END = "</w>"
MERGES = 49152 - 256 - 2  # as many lines of the vocabulary file as CLIP uses
REMEMBERED_WORDS = 1 << 17

# Anything but these characters sends a text to be repaired: tab, newline, form feed, carriage return, and
# printable ASCII without "&". In text of these alone ftfy finds nothing to fix and there is no HTML
# reference. Vertical tab and the other control characters are missing because ftfy deletes them.
_PLAIN = r"\t\n\f\r -%'-~"
_NOT_PLAIN = re.compile(rf"[^{_PLAIN}]")

# Accented Latin letters, signs and typographic punctuation, each between plain characters: ftfy suspects a
# wrong encoding only where such characters meet, or of those left out here (Â, Ã, Œ, œ, the soft hyphen), and
# of the rest it changes curly quotes alone (and ligatures, which are left out too).
_QUOTES = dict.fromkeys(range(0x2018, 0x201C), "'") | dict.fromkeys(range(0x201C, 0x2020), '"')
_TAME_CHARACTERS = "¡-¬®-ÁÄ-ıĴ-ňŊ-őŔ-ž‐-―‘-‟•…‹›€™"
_TAME = re.compile(rf"[{_PLAIN}]*(?:[{_TAME_CHARACTERS}][{_PLAIN}]+)*[{_TAME_CHARACTERS}]?")

# What a word is. Case is ignored for the sake of "ſ", the only character that equals one of the letters here
# and is not made one by lower().
_SPECIAL = rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d"
_WORDS = regex.compile(rf"[\p{{L}}]+|[\p{{N}}]|{_SPECIAL}|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE)
_PLAIN_WORDS = re.compile(rf"[a-z]+|[0-9]|{_SPECIAL}|[^\sa-z0-9]+")  # the same for plain text in lower case


def _words(text: str) -> list[str]:
    """The words of the repaired, unescaped text in lower case."""
    if not _NOT_PLAIN.search(text):
        return _PLAIN_WORDS.findall(text.lower())
    words: list[str] = _WORDS.findall(" ".join(_repaired(text).split()).lower())
    return words


def _repaired(text: str) -> str:
    if _TAME.fullmatch(text):
        return text.translate(_QUOTES)
    return html.unescape(html.unescape(ftfy.fix_text(text)))


def _byte_characters() -> list[str]:
    """The visible characters that stand for the 256 bytes, in the vocabulary's order, not the bytes'."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = 256 - len(visible)
    return [chr(byte) for byte in visible] + [chr(256 + i) for i in range(hidden)]


@cache
def vocabulary_and_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The 49,408 tokens with their ids, and the merges, from the vocabulary file of open_clip (not imported)."""
    package = importlib.util.find_spec("open_clip")
    assert package is not None, "open_clip_torch is a dependency"
    assert package.submodule_search_locations is not None
    file = Path(package.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    merges: list[tuple[str, str]] = []
    for line in lines[1 : MERGES + 1]:  # the first line is a heading
        left, right = line.split()
        merges.append((left, right))
    characters = _byte_characters()
    tokens = [*characters, *(c + WORD_END for c in characters), *(a + b for a, b in merges), START, END]
    return {token: i for i, token in enumerate(tokens)}, merges


@cache
def _vocabulary_and_model() -> tuple[dict[str, int], tokenizers.Tokenizer]:
    """The tokens and the Rust merger."""
    vocabulary, merges = vocabulary_and_merges()
    model = tokenizers.Tokenizer(BPE(vocabulary, merges, end_of_word_suffix=WORD_END))
    model.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    return vocabulary, model


class Tokenizer:
    """Texts to ids. `get_tokenizer` returns a shared one.

    `vocab_size`, `sot_token_id`, `eot_token_id` and `context_length` are named as in open_clip.
    """

    def __init__(self, context_length: int = 77) -> None:
        self.context_length = context_length
        vocabulary, self._model = _vocabulary_and_model()
        self.vocab_size = len(vocabulary)
        self.sot_token_id = vocabulary[START]
        self.eot_token_id = vocabulary[END]
        self._special = {START: (self.sot_token_id,), END: (self.eot_token_id,)}
        self._ids_of_word = lru_cache(maxsize=REMEMBERED_WORDS)(self._merge)

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return get_tokenizer, (self.context_length,)

    def _merge(self, word: str) -> tuple[int, ...]:
        # Text that spells a special token is that token: open_clip's rule.
        special = self._special.get(word)
        return special or tuple(self._model.encode(word, add_special_tokens=False).ids)

    def encode(self, text: str) -> list[int]:
        """The ids of one text of any length, without start and end."""
        ids: list[int] = []
        for word in _words(text):
            ids += self._ids_of_word(word)
        return ids

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> torch.Tensor:
        """Int64 ids (B, context_length): start, text, end, then zeros. Too long a text loses its end."""
        if isinstance(texts, str):
            texts = [texts]
        length = context_length or self.context_length
        rows = np.zeros((len(texts), length), dtype=np.int64)
        for row, text in enumerate(texts):
            ids = [self.sot_token_id, *self.encode(text), self.eot_token_id]
            if len(ids) > length:
                ids[length - 1 :] = [self.eot_token_id]
            rows[row, : len(ids)] = ids
        return torch.from_numpy(rows)

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """The cleaned text of one row of ids, without its start, its end and whatever follows the end.

        A space stands after every word, as it does in the vocabulary: "don't" comes back as "don 't".
        Bytes that are no UTF-8 (a character cut in the middle) become U+FFFD.
        """
        tokens, byte_of = _decoding_tables()
        numbers = [int(i) for i in ids]
        if self.eot_token_id in numbers:
            numbers = numbers[: numbers.index(self.eot_token_id)]
        text = "".join(tokens[i] for i in numbers if i != self.sot_token_id)
        # The end-of-word mark is spelt in characters that stand for themselves, so it can be replaced
        # afterwards.
        decoded = bytes(byte_of[c] for c in text).decode("utf-8", errors="replace")
        return decoded.replace(WORD_END, " ").strip()


@cache
def _decoding_tables() -> tuple[list[str], dict[str, int]]:
    visible = [c for c in _byte_characters() if ord(c) < 256]
    hidden = [byte for byte in range(256) if chr(byte) not in visible]
    byte_of = {c: ord(c) for c in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
    return list(_vocabulary_and_model()[0]), byte_of


@cache
def get_tokenizer(context_length: int = 77) -> Tokenizer:
    """The tokenizer of every model here: OpenAI CLIP's vocabulary of 49,408 tokens."""
    return Tokenizer(context_length)

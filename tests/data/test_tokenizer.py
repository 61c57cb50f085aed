"""The ids are open_clip's, for every string."""

import pickle
import re
import sys
import unicodedata

import ftfy
import pytest
import regex
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from diffclip.data import tokenizer as module
from diffclip.data.tokenizer import Tokenizer, get_tokenizer

REFERENCE = SimpleTokenizer()
OURS = get_tokenizer()

FRAGMENTS = [
    "a photo of a dog",
    "don't",
    "they'LL",
    "'ſ",
    "ſtart_of_text>",
    "<start_of_text>",
    "<END_OF_TEXT>",
    "<end_of_text",
    "<ſtart_of_text>",
    "&amp;",
    "&amp;lt;b&amp;gt;",
    "&eacute",
    "&NTILDE;",
    "&#x41;",
    "&#xD800;",
    "&#128;",
    "&#1;",
    "&",
    " & ",
    "&&;",
    "<b>",
    "</w>",
    "İstanbul",
    "ΣΑΣ",
    "é",
    "e\u0301",
    "\u0345",
    "ﬁ",
    "ＬＯＵＤ",
    "“quoted”",
    "’s",
    "sÃ³",
    "voilÃ\xa0",
    "👩‍👩‍👧",
    "🇩🇪",
    "日本語",
    "Ⅷ½²",
    "١٢٣",
    "\x00",
    "\x0b",
    "\x0c",
    "\x1b[31m",
    "\x1c",
    "\x7f",
    "\x85",
    "\xa0",
    "\u2028",
    "\u3000",
    "\ufeff",
    "\ufffd",
    "\r\n",
    "\t",
    "\ud83d",
    "\ude00",
    "\U0010ffff",
    "!!!",
    "...",
    "2024",
    "_",
    "\\",
]

any_character = st.characters(exclude_categories=())  # lone surrogates too
strings = st.one_of(
    st.text(any_character),
    st.text(st.characters(max_codepoint=127)),
    st.text(st.sampled_from(" 'aſst<>&;#x1")),
    st.text(st.characters(min_codepoint=32, max_codepoint=383)),
    st.lists(st.one_of(st.sampled_from("¡´ÁÇéıőſ–‘’“”…€ "), st.sampled_from(["a", " b", "C. "]))).map("".join),
    st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(any_character, max_size=3))).map("".join),
)


@settings(max_examples=1500, deadline=None)
@given(strings)
@example("")
@example("<start_of_text>!<end_of_text> <START_OF_TEXT>")
def test_ids_are_those_of_open_clip(text):
    assert OURS.encode(text) == REFERENCE.encode(text)


@pytest.mark.parametrize(
    "text",
    [
        "a" * 10_000,
        "ab1 " * 2_500,
        "é" * 10_000,
        "!?" * 5_000,
        "\n" * 10_000,
        "&lt;" * 2_500,
        "漢字 " * 3_334,
    ],
)
def test_ten_thousand_characters(text):
    assert OURS.encode(text) == REFERENCE.encode(text)
    assert torch.equal(OURS(text), REFERENCE(text))


def test_every_character_alone_and_inside_plain_text():
    """All of the scripts in use; of the rest a sample, because all of them would take a minute."""
    characters = [chr(c) for c in [*range(0x3000), *range(0x3000, sys.maxunicode, 1999)]]
    for batch in ("".join(characters[i : i + 40]) for i in range(0, len(characters), 40)):
        spaced = "a".join(batch)
        assert OURS.encode(spaced) == REFERENCE.encode(spaced), spaced


def test_ignoring_case_matters_for_one_character_only():
    """What `_WORDS` says of it, and the reason why plain text can be split without ignoring case."""
    everything = "".join(map(chr, range(sys.maxunicode + 1))).lower()
    equal = regex.findall("[<>'_adeflmnorstvx]", everything, regex.IGNORECASE)
    assert {c for c in equal if not c.isascii()} == {"ſ"}
    assert unicodedata.name("ſ") == "LATIN SMALL LETTER LONG S"


@settings(max_examples=100, deadline=None)
@given(st.lists(strings, max_size=5), st.integers(1, 20))
def test_batches_are_padded_and_cut_like_open_clips(texts, context_length):
    ids = OURS(texts, context_length)
    assert ids.dtype == torch.int64
    assert ids.shape == (len(texts), context_length)
    assert torch.equal(ids, REFERENCE(texts, context_length))


def test_a_string_is_a_batch_of_one_and_the_length_a_property_of_the_tokenizer():
    assert torch.equal(OURS("a dog"), OURS(["a dog"]))
    assert Tokenizer(5)("a dog and a cat and a bird").tolist() == [[49406, 320, 1929, 537, 49407]]
    assert (OURS.vocab_size, OURS.sot_token_id, OURS.eot_token_id, OURS.context_length) == (
        49408,
        49406,
        49407,
        77,
    )
    assert get_tokenizer() is get_tokenizer()


def test_decoding_gives_the_words_back():
    assert OURS.decode(OURS("  A  Naïve café, 日本語 🎉 ")[0]) == "a naïve café , 日本語 🎉"
    assert OURS.decode(OURS.encode("no end or start")) == "no end or start"
    assert OURS.decode(OURS("")[0]) == ""
    assert OURS.decode(OURS.encode("🎉")[:1]).startswith("\ufffd") or len(OURS.encode("🎉")) == 1


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(categories=("L", "N", "Zs")), max_size=40))
@example("ŒÀ")
def test_decoding_inverts_encoding_up_to_spaces(text):
    ids = OURS.encode(text)
    decoded = OURS.decode(ids)
    assume(
        ftfy.fix_text(decoded) == decoded
    )  # "œà" looks like mis-decoded text, which encoding repairs, as open_clip does
    assert OURS.encode(decoded) == ids


def test_a_tokenizer_survives_pickling():
    copy = pickle.loads(pickle.dumps(Tokenizer(9)))
    assert torch.equal(copy("a dog"), Tokenizer(9)("a dog"))


def test_only_text_that_may_need_it_is_repaired(monkeypatch):
    """The fast paths are taken where they should be, and only there."""

    def fail(text):
        raise AssertionError(text)

    monkeypatch.setattr(module.ftfy, "fix_text", fail)
    for text in ("A plain caption, isn't it? <b>100%</b>\t\r\n\f~", "“the dog’s café – naïve”", "É"):
        OURS.encode(text)
    for text in ("a & b", "é&", "éé", "Ã ", "\x0b", "\x7f", "\x1b", "ﬁ", "a\xa0b", "日"):
        with pytest.raises(AssertionError):
            OURS.encode(text)


def test_ftfy_straightens_quotes_and_nothing_else_in_tame_text():
    """Every tame character in every kind of plain company; a new version of ftfy may change its mind."""
    tame = [chr(c) for c in range(0x80, 0x3000) if re.fullmatch(f"[{module._TAME_CHARACTERS}]", chr(c))]
    assert len(tame) > 200
    company = ["a", "Z", "5", " ", "  ", ".", "-", "'", "<", "\t", "\n", ". ", "a ", " a"]
    for between in company:
        for shift in range(0, len(tame), 30):  # neighbours at several distances in the list
            text = between.join(a + between + b for a, b in zip(tame, tame[shift:] + tame[:shift], strict=True))
            for whole in (text, between + text, text + between):
                assert module._TAME.fullmatch(whole)
                assert ftfy.fix_text(whole) == whole.translate(module._QUOTES)

"""How a text is written, taken away: what is left of two answers that differ only in spelling is the same."""

from __future__ import annotations

import re
import unicodedata

_LONGEST = 10_000
_DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-") | {"\u2019": "'"})
_THIN = "\u00a0\u2007\u2009\u202f"
_GROUPED = re.compile(rf"\s*[+-]?[0-9]{{1,3}}(?:[{_THIN}][0-9]{{3}})+(?![0-9])")
_QUOTES = {'"': '"', "'": "'", "`": "`", "\u201c": "\u201d", "\u2018": "'", "*": "*"}
_GREEK = str.maketrans(
    {
        letter: unicodedata.name(letter).removeprefix("GREEK SMALL LETTER ").lower()
        for letter in "αβγδεζηθικμνξοπρστυφχψω"
    }
    | {"λ": "lambda", "ϵ": "epsilon", "ϑ": "theta", "ϕ": "phi"}
)
_HYPHENATED = re.compile(r"(?<![^\s(,;/])[a-z][a-z0-9]*(?:-[a-z0-9]+)+(?![^\s),;/])")
_SEPARATOR = re.compile(r" ?([,;]) ?")
_LETTERS_THEN_DIGIT = re.compile(r"^([a-z]{2,})-(?=[0-9])")
_BEFORE_LETTER = re.compile(r"(?<=[a-z0-9])-(?=[a-z])")
_REFUSAL = re.compile(
    r"((there is )?(insufficient|not enough) (information|data)"
    r"|(i )?(cannot|can not|can't|could not|couldn't) (answer|determine|be determined)"
    r"|(i am |i'm )?(unable|not able) to (answer|determine)|(i )?(do not|don't) know|i (refuse|decline)"
    r"|(it |this |the answer )?(cannot|can not|can't|could not) be (answered|determined))\b[^.,;:]*"
    r"|n/a|unknown|unsure|(i am |i'm )?(unsure|not sure)"
)


def plain_text(text: str) -> str:
    """Text with one form of dash and blank, without what is invisible, quotes around it and a final full stop.

    A text of more than 10,000 characters is no short answer and keeps all but its blanks.

    Example:
        >>> plain_text(' "−4.96" ')
        '-4.96'
    """
    if len(text) > _LONGEST:
        # Unicode's ordering of combining marks takes quadratic time.
        return " ".join(text.split())
    if not text.isascii():
        # NFC, not NFKC: that would turn 10² into 102.
        text = unicodedata.normalize("NFC", text).translate(_DASHES)
        text = "".join(c for c in text if unicodedata.category(c) != "Cf")
        if grouped := _GROUPED.match(text):
            text = re.sub(rf"[{_THIN}]", ",", grouped.group().strip()) + text[grouped.end() :]
    text = " ".join(text.split())
    if len(text) > 1 and text[-1] == "." and text[-2] != ".":
        text = text[:-1].rstrip()
    for _ in range(2):
        if len(text) > 2 and _QUOTES.get(text[0]) == text[-1]:
            text = text[1:-1].strip()
    return text


def normal_text(text: str) -> str:
    """Plain text with one case, one blank after commas, Greek letters by name, and gene symbols without punctuation.

    A hyphen inside a word goes where it cannot be a sign or part of a number: before a letter (`HLA-A`, `c-Myc`),
    and between the letters that a word begins with and a digit (`IL-6`). Between digits it stays: `NKX2-5`.

    Example:
        >>> normal_text("IFN-γ"), normal_text("cdkn-2a"), normal_text("miR-21-5p")
        ('ifngamma', 'cdkn2a', 'mir21-5p')
    """
    text = plain_text(text).casefold()
    if not text.isascii():
        text = text.translate(_GREEK)
    text = _SEPARATOR.sub(r"\1 ", text)
    return _HYPHENATED.sub(_without_hyphens, text) if "-" in text else text


def is_refusal(text: str) -> bool:
    """Whether an answer says no more than that it gives none."""
    return _REFUSAL.fullmatch(plain_text(text).casefold()) is not None


def _without_hyphens(word: re.Match[str]) -> str:
    if len(word.group()) < 4:
        return word.group()
    return _BEFORE_LETTER.sub("", _LETTERS_THEN_DIGIT.sub(r"\1", word.group()))

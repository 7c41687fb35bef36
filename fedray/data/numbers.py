"""Normalize numbers as people and LLMs write them to one plain form.

Read are signs (also U+2212, and with a space behind), thousands separators, decimals, fractions (3/4, 1 1/2, a half as
one character, LaTeX), exponents (1e3, 2 x 10^3), digits of any script, and currency and per cent, which say nothing.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_LONGEST = 100  # characters of a number that is one in earnest
_CURRENCY = r"(?:[$€£¥₹₩₽₺฿]|USD|EUR|GBP|RMB|CNY|Rs\.?)"
_COMMA = r"[,\u00a0\u2009\u202f'_]"  # between thousands
_WHOLE = rf"(?:\d{{1,3}}(?:{_COMMA}\d{{2,3}})*{_COMMA}\d{{3}}|\d{{1,3}}(?: \d{{3}})+|\d+)(?!\d)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.\d+)?|\.\d+)"
_POWER = r"(?:[eE][+-]?\d{1,3}(?!\w)|\s*[x×*·]\s*10\s*\^\s*\{?[+-]?\d{1,3}\}?)"
NUMBER = (  # as plain_text leaves it; no capturing groups
    rf"(?<![A-Za-z0-9_.√^])(?:(?<![\d)])[-+]\s?)?(?:{_CURRENCY}\s?)?(?:(?<![\d)])-)?"
    rf"(?:10\s*\^\s*\{{?[+-]?\d{{1,3}}\}}?|\d+\s+\d+/\d+|{_DECIMAL}{_POWER}?(?:\s?/\s?{_DECIMAL})?)"
    r"(?!\s?(?:st|nd|rd|th)\b)"
)
_ALONE = re.compile(rf"(?P<number>{NUMBER})\s*(?:{_CURRENCY}|%|per ?cent)?[.。]?", re.IGNORECASE)
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")


def plain_text(text: str) -> str:
    """Convert every digit, minus and fraction of a text to ASCII.

    >>> plain_text("−２½ of 10³, \\\\frac{3}{4}")
    '-2 1/2 of 10^3,  3/4'
    """
    text = _FRACTION.sub(lambda m: f" {m[1] or m[2] or ''}/{m[3] or m[4] or ''}", text)
    return text if text.isascii() else "".join(map(_ascii, text))


def _ascii(character: str) -> str:
    if character in "−–‐‑﹣－":
        return "-"
    match unicodedata.category(character):
        case "Nd":
            return str(unicodedata.digit(character))
        case "No" if "SUPERSCRIPT" in unicodedata.name(character, ""):
            return f"^{unicodedata.digit(character)}"
        case "No" if "FRACTION" in unicodedata.name(character, ""):
            return " " + unicodedata.normalize("NFKC", character).replace("\u2044", "/")
    return unicodedata.normalize("NFKC", character) if "\uff01" <= character <= "\uff5e" else character


def plain_number(text: str) -> str | None:
    """Normalize the number that a text is; None where it is no number, or more than one.

    >>> plain_number("$1,200.50"), plain_number("−3/4"), plain_number("1/3"), plain_number("N/A")
    ('1200.5', '-0.75', '1/3', None)
    """
    found = _ALONE.fullmatch(plain_text(text).strip().strip("$").strip())
    if found is None or len(found["number"]) > _LONGEST:
        return None
    written = re.sub(
        rf"{_CURRENCY}|{_COMMA}|(?<=\d) (?=\d{{3}}(?!\d*/))|[+{{}}]", "", found["number"], flags=re.IGNORECASE
    )
    size = written.strip().lstrip("- ")
    try:
        value = sum(map(_value, re.split(r"\s+(?=\d+/\d)", size)), Fraction())
    except (ValueError, ZeroDivisionError):
        return None
    return _written(value if written.strip() == size else -value)


def _value(written: str) -> Fraction:
    """Parse a decimal, with a power or as a fraction."""
    above, _, below = re.sub(r"\s", "", written).partition("/")
    number, _, power = re.sub(r"[x×*·]?10\^", "e", above).partition("e")
    value = Fraction(number or 1) * Fraction(10) ** int(power.lower() or 0)
    return value / Fraction(below) if below else value


def _written(value: Fraction) -> str:
    """Format as an exact decimal where there is one, else as a fraction in its lowest terms."""
    above, below = value.as_integer_ratio()
    places, rest = 0, below
    for prime in (2, 5):
        times = 0
        while rest % prime == 0:
            rest, times = rest // prime, times + 1
        places = max(places, times)
    if rest > 1:
        return f"{above}/{below}"
    digits = str(abs(above) * 10**places // below).rjust(places + 1, "0")
    whole = digits[:-places] + "." + digits[-places:] if places else digits
    return ("-" if above < 0 else "") + whole

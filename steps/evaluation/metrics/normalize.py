"""Turn an answer and an accepted answer into words that can be compared. Every metric uses this module.

docs/scoring.md states the rules, with a table of cases that the tests run.
"""

import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction

# Python's own `re` knows neither scripts nor emoji.
import regex

# Of these forms the plain character has another meaning: x² is not x2, and 1½ is not 11/2.
KEPT_FORMS = ("<super>", "<sub>", "<fraction>", "<circle>")
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
ALIKE = {
    "\N{MINUS SIGN}": "-",
    "\N{HYPHEN}": "-",
    "\N{NON-BREAKING HYPHEN}": "-",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{MUSIC SHARP SIGN}": "#",
    "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}": "i",
    "\N{FRACTION SLASH}": "/",
    "\N{DIVISION SLASH}": "/",
    "\N{ARABIC THOUSANDS SEPARATOR}": ",",
    "\N{ARABIC DECIMAL SEPARATOR}": ".",
}
DOTLESS = "\N{LATIN SMALL LETTER DOTLESS I}"
NO_BRACES = str.maketrans("", "", "{}")
LONGEST_NUMBER = 60  # a model that repeats itself may write thousands of digits

# Scripts that put no space between words, or glue particles to them (Hangul).
UNSPACED_SCRIPTS = (
    "Han Hiragana Katakana Bopomofo Hangul Yi Thai Lao Khmer Myanmar Tibetan "
    "Tai_Le New_Tai_Lue Tai_Tham Tai_Viet Javanese Balinese Cham"
)
SCRIPTS = "".join(rf"\p{{scx={script}}}" for script in UNSPACED_SCRIPTS.split())
UNSPACED = regex.compile(rf"(?V1)[[\p{{L}}\p{{Nl}}]&&[{SCRIPTS}]]\p{{M}}*+")
PICTOGRAPH = r"[\p{Extended_Pictographic}--[©®™]]\p{Emoji_Modifier}?"
EMOJI = rf"(?:\p{{RI}}{{2}}|[#*]\u20E3|{PICTOGRAPH}[\U000E0020-\U000E007F]*(?:\u200D{PICTOGRAPH})*)"
# Tags tell the flags of England and Scotland apart; a joiner makes one emoji of several.
# So do controls other than white space, and the stroke that only lengthens an Arabic word.
VANISHING = regex.compile(
    r"(?V1)(?!\u200D\p{Extended_Pictographic})[[\p{DI}--[\U000E0020-\U000E007F]]||[\p{Cc}--\s]||\u0640]"
)
# Arabic and Hebrew are mostly written without the marks of their vowels.
VOWEL_MARKS = re.compile("[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u0652\u0670]")

LETTER = r"[\p{L}\p{M}\p{N}]"
# Units that may stand right behind a number: 5km is 5 km. Not m and k, which may mean millions and thousands.
UNITS = "km|cm|mm|kg|mg|lbs?|oz|ft|ml|ms|[kmgt]i?b|[kmg]?hz|kwh?|mph|am|pm|px"
# 2019-2020 and COVID-19 have no sign. Some write a dash for minus, but after a number it is a range.
SIGN = r"(?<![\p{L}\p{M}\p{N})\]}%.\-])(?:[-+±]|(?<!\d\s)\u2013)"
NUMBER = rf"""
    (?: (?P<sign>{SIGN})? (?P<unit>\p{{Sc}}) \s? (?P<sign>-)? | (?P<sign>{SIGN}) | (?<!{LETTER}) )
    (?P<run> [1-9]\d{{0,2}} (?:[ ]\d{{3}})++ (?![ ]?\d) (?:[.,]\d++)?
           | [1-9]\d{{0,2}} (?:_\d{{3}})++ (?![_\d])
           | \d++ [ ] \d/\d++ (?!/)
           | \d++ (?:[.,:/']\d++)*+
           | (?<![\p{{L}}\p{{M}}\p{{N}}.]) \.\d++ )
    (?P<exponent> e[-+]?\d{{1,3}}+ )?
    (?: st | nd | rd | th | º | ª )?
    (?= (?:{UNITS})(?!{LETTER}) | (?!{LETTER}|[_^]|[.,:/']\d) )
    (?: \s? (?P<unit>[%‰°]) | \s? (?P<unit>\p{{Sc}}) (?!\s?\d) )?
"""
WORD = rf"""
    {LETTER}++ (?: (?: _++ | (?<=\d)[.,:](?=\d) ) {LETTER}++ )*+
    (?: \^ (?: \{{[^{{}}\s]++\}} | [-+]?{LETTER}++ | [-+] ) )?
    | \^ [-+]?{LETTER}++
"""
# C++, C#, A+ and Na+; behind one or two letters also a minus: grade B-, blood group AB-.
NAME = rf"\p{{L}}{LETTER}*+ [+\#]++ (?!{LETTER}) | \p{{L}}{{1,2}}+ - (?!{LETTER}|-)"
# Between single letters, numbers or brackets. Elsewhere it is punctuation: and/or, km/h.
OPERATOR = r"(?<=(?:(?<!\p{L})\p{L}|[\d)\]])\s?)[/%](?=\s?(?:\p{L}(?!\p{L})|[\d(\[]))"
TOKEN = regex.compile(
    rf"(?V1x) (?=[\d.+±\-\u2013\p{{Sc}}]) (?: {NUMBER} )"
    rf"| (?P<word> {NAME} | {WORD} ) | (?P<symbol> {EMOJI} | !=+ | {OPERATOR} | [[\p{{Sm}}\p{{So}}*&]--[©®™°~]] )"
)
CHUNK = regex.compile(rf"(?V1){EMOJI}|(?:(?!{EMOJI})\S)++")
AROUND = regex.compile(r"""["'`*_.,;:!?\p{Pi}\p{Pf}\p{Ps}\p{Pe}<>]*""")

CHARGE = regex.compile(r"(?<=\p{L})[²-³¹⁴-⁹]?[⁺⁻](?![⁰¹²³⁴-⁹])")  # Ca²⁺ is Ca2+
RAISED = regex.compile(r"[⁰¹²³⁴-⁹⁺⁻ⁿ]+")
INDEX = regex.compile(r"(?<=[\p{L})\]])[₀-₉]+(?!\d)")
FRACTION_SIGN = regex.compile(r"(?<=(\d)?)[¼-¾⅐-⅞]")
PERCENT = regex.compile(r"(?<=\d)\s?(?:%|per\s?cent\b)")
MINUS = regex.compile(r"(?:(?<!\d\s)\b(?:minus|negative)\s+|(?<=[=≈<>(]\s?)-\s)(?=\p{Sc}?\.?\d)")
POWER = r"10\^\{?([-+]?\d{1,3})\}?(?![\d^])(?![.,]\d)"
POWER_OF_TEN = regex.compile(rf"(?<=\d)\s?(?:[\u00D7x*·]|\\times)\s?{POWER}")
BARE_POWER_OF_TEN = regex.compile(rf"(?<![\p{{L}}\p{{M}}\p{{N}}^]|\d[.,]){POWER}(?!{LETTER})")
DOLLARS = regex.compile(r"(?<!\p{L})\p{L}{1,2}(?=\$\s?\d)")  # US$5, R$ 5
# LaTeX writes 1{,}000 and a fraction with two braces.
LATEX_COMMA = re.compile(r"(?<=\d)(?:\{,\}|\\,)(?=\d{3})")
LATEX_FRACTION = re.compile(r"\s?\\[dt]?frac\{(\d+)\}\{(\d+)\}")

# Ways to write a number, with their separators of thousands and of decimals.
NOTATIONS = tuple(
    (re.compile(pattern), str.maketrans(dict.fromkeys(thousands) | dict.fromkeys(decimals, ".")))
    for pattern, thousands, decimals in (
        (r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?", ",", "."),
        (r"[1-9]\d{0,2}(?:\.\d{3})+,\d+|[1-9]\d{0,2}(?:\.\d{3}){2,}", ".", ","),
        (r"[1-9]\d{0,2}(?:[ '_]\d{3})+(?:[.,]\d+)?", " '_", ".,"),
        (r"[1-9]\d?(?:,\d\d)+,\d{3}(?:\.\d+)?", ",", "."),  # Indian
        (r"(?:0|[1-9]\d*)(?:\.\d+)?|\.\d+", "", "."),
        (r"(?:0|[1-9]\d*),\d+", "", ","),
    )
)
RATIO = re.compile(r"(?:([1-9]\d*) )?([1-9]\d*)/([1-9]\d*)")
# What is written together, but is several numbers: 1,2,3 and 12.3.1879; (3,5) is no decimal number either.
SEVERAL = re.compile(r"\d+(?:,\d+){2,}|\d{4}([./])\d\d?\1\d\d?|\d\d?([./])\d\d?\2\d{4}|\d\d?/\d\d?/\d\d?")
COORDINATES = re.compile(r"(?<=[(\[{])\d+,(?:\d{1,2}|\d{4,})(?=[)\]}])")


def comparable(prediction: str, target: str) -> tuple[list[str], list[str]]:
    """Return the words of a prediction and of an accepted answer.

    An accepted answer without any word (`+`, 👍) is compared as it stands: both texts are split at spaces. Symbols
    count only if the accepted answer has some. The unit of a number ($, %, °) counts only if both numbers have one.
    """
    # In Turkish, I is the capital of the letter without a dot.
    if DOTLESS in target or (DOTLESS in prediction and target.isupper()):
        prediction, target = prediction.replace("I", DOTLESS), target.replace("I", DOTLESS)
    shown, wanted = _prepare(prediction), _prepare(target)
    if not (VOWEL_MARKS.search(shown) and VOWEL_MARKS.search(wanted)):
        shown, wanted = VOWEL_MARKS.sub("", shown), VOWEL_MARKS.sub("", wanted)
    if not any(_tokens(wanted, with_symbols=False)):
        chunks = CHUNK.findall(wanted)
        return [_bare(chunk, chunks) for chunk in CHUNK.findall(shown)], chunks
    if PERCENT.search(wanted):
        shown, wanted = PERCENT.sub("%", shown), PERCENT.sub("%", wanted)
    with_symbols = any(match["symbol"] for match in TOKEN.finditer(wanted))
    predicted, expected = list(_tokens(shown, with_symbols)), list(_tokens(wanted, with_symbols))
    units = {text: unit for text, unit in expected if unit}
    return (
        [text + unit if unit and units.get(text, unit) != unit else text for text, unit in predicted],
        [text for text, _ in expected],
    )


def contains(prediction: str, target: str) -> bool:
    """Return True if the words of an accepted answer stand together in the prediction."""
    predicted, wanted = comparable(prediction, target)
    starts = range(len(predicted) - len(wanted) + 1)
    return bool(wanted) and any(predicted[start : start + len(wanted)] == wanted for start in starts)


def clean(text: str) -> str:
    """Return a text without invisible characters, and with full-width and other forms of characters made plain."""
    if text.isascii() and text.isprintable():
        return text
    return unicodedata.normalize("NFC", VANISHING.sub("", text).translate(PLAIN))


class _Plain(dict[int, str]):
    """The plain form of every character: NFKC, except where that changes the meaning, and digits of any script."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        form, *parts = unicodedata.decomposition(char).split() or [""]
        if char.isdecimal():
            self[code] = str(unicodedata.decimal(char))
        elif not form.startswith("<") or form in KEPT_FORMS or (parts[0] == "0020" and len(parts) > 1):
            self[code] = ALIKE.get(char, char)
        else:
            self[code] = "".join(self[int(part, 16)] for part in parts)
        return self[code]


PLAIN = _Plain({ord("№"): "no. "})


def _prepare(text: str) -> str:
    """Return a text in lower case, with one way to write powers, and spaces around letters of scripts without any."""
    text = unicodedata.normalize("NFC", clean(text).casefold())
    if not text.isascii():
        text = CHARGE.sub(lambda match: match[0].translate(SUPERSCRIPTS), text)
        text = RAISED.sub(lambda match: "^" + match[0].translate(SUPERSCRIPTS), text)
        text = INDEX.sub(lambda match: match[0].translate(SUBSCRIPTS), text)
        text = FRACTION_SIGN.sub(_spelled_out, text)
        text = UNSPACED.sub(r" \g<0> ", text)
    text = LATEX_FRACTION.sub(r" \1/\2 ", LATEX_COMMA.sub(",", text)) if "\\" in text or "{" in text else text
    text = BARE_POWER_OF_TEN.sub(r"1e\1", POWER_OF_TEN.sub(r"e\1", text))
    return str(MINUS.sub("-", DOLLARS.sub("", text)))


def _spelled_out(match: "regex.Match[str]") -> str:
    """Write ½ as 1/2, and 1½ as 1 1/2."""
    fraction: str = unicodedata.normalize("NFKC", match[0]).translate(PLAIN)
    return f" {fraction}" if match[1] else fraction


def _bare(chunk: str, wanted: list[str]) -> str:
    """Return what stands in a chunk, without quotes, emphasis and sentence marks around it, if it is wanted."""
    for text in wanted:
        before, middle, after = chunk.partition(text)
        if middle and all(AROUND.fullmatch(part) and not set(part) & set(text) for part in (before, after)):
            return text
    return chunk


def _tokens(text: str, with_symbols: bool) -> Iterator[tuple[str, str]]:
    """Yield the words of a prepared text, each with its unit if it is a number that has one."""
    for match in TOKEN.finditer(text):
        if match["run"]:
            yield from _numbers(match)
        elif with_symbols or not match["symbol"]:
            yield match[0].translate(NO_BRACES), ""


def _numbers(match: "regex.Match[str]") -> Iterator[tuple[str, str]]:
    """Yield a number in one canonical form; several if they are only written together; or else what stands there."""
    run, value = match["run"], _value(match["run"], match["exponent"] or "")
    if value is not None and not COORDINATES.match(match.string, match.start("run")):
        signed = -value if match["sign"] in ("-", "\u2013") else value
        yield f"{'±' if match['sign'] == '±' else ''}{signed}", match["unit"] or ""
    elif value is not None or SEVERAL.fullmatch(run):
        yield from ((str(_value(part) or part), "") for part in re.split(r"[,./]", run))
    else:
        yield run.replace(" ", "") + (match["exponent"] or ""), ""


def _value(run: str, exponent: str = "") -> Fraction | None:
    """Return the number that digits and separators stand for; None for a code (007), a version, a time of day."""
    if len(run) > LONGEST_NUMBER:
        return None
    for pattern, separators in NOTATIONS:
        if pattern.fullmatch(run):
            return Fraction(run.translate(separators) + exponent)
    if ratio := RATIO.fullmatch(run):
        whole, top, bottom = (int(part or 0) for part in ratio.groups())
        value = whole + Fraction(top, bottom)
        return value if value.denominator > 1 else None  # 12/3 is more likely a date than 4
    return None

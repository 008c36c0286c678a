"""Raw ingredient lines to names, measures and preparation, with ingredient-parser-nlp.

`"2 (14.5 ounce) cans diced tomatoes, drained"` becomes the name `diced tomatoes`, the measures
`2 can` and `14.5 ounce` (per item) and the words of its preparation.  Lines that are no ingredient
(headings, equipment, notes to the cook) are recognised as such and carry no name.
"""

import concurrent.futures
import dataclasses
import html
import io
import math
import multiprocessing
import os
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from recipe_jax.data.files import DataError
from recipe_jax.data.line_kinds import LineKind, kind_by_name, kind_by_text
from recipe_jax.data.units import CONTAINERS, is_mass, is_volume, read_unit

TAGGER = "averaged_perceptron_tagger_eng"
_TAG = re.compile(r"<[^>]*>?")
# "1 cup each raspberries and blueberries", not "4 (8 ounces each)".
_SHARED = re.compile(r"^[^,(;]*\beach\b", re.IGNORECASE)
_NOT_NAME = re.compile(r"\([^)]*\)?|[\d¼½¾⅓⅔⅛⅜⅝⅞][\d/.\-]*")
_COMMA = re.compile(r"[,;]")
_OR = re.compile(r"\bor\b", re.IGNORECASE)
_HALF_A_DOZEN = re.compile(r"\bhalf a dozen\b", re.IGNORECASE)
_COUPLE = re.compile(r"^(?:about )?(?:a )?(?:couple|few)\b", re.IGNORECASE)
_RUN_TOGETHER = re.compile(r"(?<=\d )(cups|teaspoons|tablespoons|ounces|pounds)(?=[A-Za-z])")
_HALF = re.compile(r"^half (?:of )?(?:an? )?", re.IGNORECASE)
_LEADING_ARTICLE = re.compile(r"^an? ", re.IGNORECASE)
_BULLETS = "\u2022\u2013\u00b7- "
# Enough lines per task that a task outlasts the cost of sending it, few enough for a smooth bar.
_CHUNK = 256
_WORDS_OF_COUNT = {"half": 0.5, "few": 3.0, "couple": 2.0, "several": 3.0, "dozen": 12.0, "a": 1.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """One amount of a line, such as `14.5 ounce`.

    Attributes:
        quantity: how many units; the mean of a range.  `2 pounds 3 ounces` is two measures, the
            second with `adds=True`; "minus" gives it a negative quantity.
        unit: singular, in full ("tablespoon", "can"); empty where things are counted.
        size: "small", "medium" or "large", else empty.
        per_item: the size of one of the items counted by the measure before it.
        adds: to be added to the measure before it, not another way to say it.
    """

    quantity: float
    unit: str = ""
    size: str = ""
    per_item: bool = False
    adds: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngredientLine:
    """A raw line, read.

    Attributes:
        kind: what the line is; only an `"ingredient"` has names.
        names: the foods as written.  Alternatives ("butter or oil") keep the first alone.
        phrases: the line without amounts and parentheses, cut at its commas: the food is in one of
            them even where the parser cut its name wrongly.
        measures: in the order of the line.
        preparation: words about preparation, purpose and the like, in lower case.
        is_shared: the measures hold for each of several names ("1 teaspoon each salt and pepper").
    """

    kind: LineKind
    names: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()
    measures: tuple[Measure, ...] = ()
    preparation: str = ""
    is_shared: bool = False


def parse_lines(
    lines: Sequence[str], *, processes: int | None = None, show_progress: bool = True
) -> dict[str, IngredientLine]:
    """Read every distinct line once, in a pool of processes.

    Args:
        lines: raw lines; repetitions are parsed once.
        processes: size of the pool; by default one for each core this process may use.  With one
            the work is done here, without a pool.
        show_progress: draw a progress bar on stderr.

    Raises:
        DataError: the parser's tagger is neither installed nor to be downloaded.
    """
    require_tagger()
    distinct = list(dict.fromkeys(lines))
    processes = processes or len(os.sched_getaffinity(0))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    read: dict[str, IngredientLine] = {}
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not show_progress
    ) as progress:
        task = progress.add_task("parsing lines", total=len(distinct))
        for chunk in _parsed_chunks(distinct, processes):
            read |= chunk
            progress.update(task, completed=len(read))
    return read


def parse_line(line: str) -> IngredientLine:
    """Read one raw line.

    Raises:
        DataError: the parser's tagger is neither installed nor to be downloaded.
    """
    require_tagger()
    return _parse(line)


def require_tagger() -> None:
    """Find the tagger that ingredient-parser-nlp loads, or download it.

    The parser would try to download it on import and fail with a traceback of dozens of lines.

    Raises:
        DataError: it is neither installed nor to be downloaded.
    """
    import nltk.data
    import nltk.downloader

    if _has_tagger():
        return
    nltk.downloader.download(TAGGER, quiet=True, print_error_to=io.StringIO())
    if not _has_tagger():
        raise DataError(
            f"NLTK's tagger {TAGGER!r}, which ingredient-parser-nlp needs, is not on this machine "
            f"and could not be downloaded: run `python -m nltk.downloader {TAGGER}` where there "
            "is a network, then set NLTK_DATA to the folder nltk_data that it wrote"
        )


def _has_tagger() -> bool:
    import nltk.data

    try:
        nltk.data.find(f"taggers/{TAGGER}/{TAGGER}.weights.json")
    except LookupError:
        return False
    return True


def _parsed_chunks(lines: Sequence[str], processes: int) -> Iterator[dict[str, IngredientLine]]:
    chunks = [lines[start : start + _CHUNK] for start in range(0, len(lines), _CHUNK)]
    if processes == 1 or len(chunks) < 2:
        yield from map(_parse_chunk, chunks)
        return
    # Spawned, not forked: the caller may hold threads of JAX, which a fork could deadlock.
    with concurrent.futures.ProcessPoolExecutor(
        min(processes, len(chunks)), mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        yield from pool.map(_parse_chunk, chunks)


def _parse_chunk(lines: Sequence[str]) -> dict[str, IngredientLine]:
    return {line: _parse(line) for line in lines}


def _parse(line: str) -> IngredientLine:
    text = _clean(line)
    kind = kind_by_text(text)
    if kind != "ingredient":
        return IngredientLine(kind=kind)
    # Imported late: it loads its model, and on import it may try to download the tagger.
    from ingredient_parser import parse_ingredient

    return line_of_parse(text, parse_ingredient(text, string_units=True))


def _clean(line: str) -> str:
    text = html.unescape(line) if "&" in line else line
    if "<" in text:
        text = _TAG.sub(" ", text)
    text = " ".join(text.split()).lstrip(_BULLETS)
    text = _RUN_TOGETHER.sub(r"\1 ", _HALF_A_DOZEN.sub("6", text))
    return _HALF.sub("1/2 ", text)


def line_of_parse(text: str, parsed: Any) -> IngredientLine:
    """What ingredient-parser-nlp found in `text`, in our terms.

    Args:
        text: the sentence that was parsed.
        parsed: its `ingredient_parser.ParsedIngredient`, with units as strings.
    """
    names = [name.text for name in parsed.name]
    kind = kind_by_name(names, text)
    if kind != "ingredient":
        return IngredientLine(kind=kind)
    described = [parsed.size, parsed.preparation, parsed.comment, parsed.purpose]
    words = " ".join(part.text for part in described if part is not None).lower()
    first_name = min((name.starting_index for name in parsed.name), default=0)
    measures = list(_measures(parsed.amount, first_name))
    if not measures and _COUPLE.match(text):
        measures = [Measure(quantity=3.0 if "few" in text[:10].lower() else 2.0)]
    elif not measures and _LEADING_ARTICLE.match(text):
        measures = [Measure(quantity=1.0)]
    size = read_unit(parsed.size.text).size if parsed.size is not None else ""
    if size:
        measures = [
            dataclasses.replace(m, size=m.size or size) if not is_mass(m.unit) else m
            for m in measures
        ]
    return IngredientLine(
        kind="ingredient",
        names=tuple(names[:1] if _OR.search(text) else names),
        phrases=_phrases(text),
        measures=tuple(measures),
        preparation=words,
        is_shared=_SHARED.match(text) is not None,
    )


def _phrases(text: str) -> tuple[str, ...]:
    parts = (" ".join(part.split()) for part in _COMMA.split(_NOT_NAME.sub(" ", text)))
    return tuple(filter(None, parts))


def _measures(amounts: Sequence[Any], first_name: int) -> Iterator[Measure]:
    """Measures of the parser's amounts; decides which of them are the size of one item."""
    before: Measure | None = None
    for amount in amounts:
        parts = amount.amounts if hasattr(amount, "amounts") else [amount]
        is_minus = hasattr(amount, "amounts") and amount.subtractive
        for place, part in enumerate(parts):
            measure = _measure(part)
            if measure is None:
                continue
            if place and is_minus:
                measure = dataclasses.replace(measure, quantity=-measure.quantity)
            is_size = place == 0 and _is_item_size(before, measure, part, first_name)
            measure = dataclasses.replace(measure, adds=place > 0, per_item=is_size)
            yield measure
            before = measure


def _is_item_size(before: Measure | None, measure: Measure, part: Any, first_name: int) -> bool:
    if before is None or not (is_mass(measure.unit) or is_volume(measure.unit)):
        return False
    if is_mass(before.unit) or is_volume(before.unit):
        return before.per_item and part.SINGULAR
    # "4 (8 ounce) yams" is per item; "6 carrots (about 1 pound)" is a total.
    stands_before_name = part.starting_index < first_name and not part.APPROXIMATE
    return part.SINGULAR or (stands_before_name and before.unit in {"", *CONTAINERS})


def _measure(amount: Any) -> Measure | None:
    unit = read_unit(amount.unit)
    low, high = (_number(part) for part in (amount.quantity, amount.quantity_max))
    if low is None or high is None:
        return None
    return Measure(quantity=(low + high) / 2 * unit.factor, unit=unit.name, size=unit.size)


def _number(quantity: Fraction | str) -> float | None:
    """A quantity, where the parser left words ("", "few", "1 dozen") for a number."""
    if isinstance(quantity, Fraction):
        return float(quantity)
    words = quantity.lower().split() or ["1"]
    numbers = [_WORDS_OF_COUNT.get(word) or _decimal(word) for word in words]
    known = [number for number in numbers if number is not None]
    return math.prod(known) if known else None


def _decimal(word: str) -> float | None:
    return float(word) if re.fullmatch(r"\d+(\.\d+)?", word) else None

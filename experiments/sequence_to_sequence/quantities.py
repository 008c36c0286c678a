"""A task made up by rule, for whoever has no pairs at hand: quantities written out.

`2 1/4 tsp` is written `two and a quarter teaspoons`.  Fractions, decimals and ranges need whole
numbers copied digit by digit into words, and the unit's number depends on them.
"""

import numpy as np

from experiments.sequence_to_sequence.text_pairs import Pair, PairTable

NAME = "quantities written out"
NUM_PAIRS = 12_000

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()

FRACTIONS = {
    "1/2": "a half",
    "1/3": "a third",
    "2/3": "two thirds",
    "1/4": "a quarter",
    "3/4": "three quarters",
    "1/8": "an eighth",
    "3/8": "three eighths",
    "5/8": "five eighths",
    "7/8": "seven eighths",
}
UNITS = {
    "c": "cup",
    "tsp": "teaspoon",
    "tbsp": "tablespoon",
    "oz": "ounce",
    "lb": "pound",
    "pt": "pint",
    "g": "gram",
    "kg": "kilogram",
    "ml": "milliliter",
    "l": "liter",
    "min": "minute",
}
"""Abbreviation -> its word; a plural has an s."""


def quantity_table(num_pairs: int = NUM_PAIRS) -> PairTable:
    """The same distinct pairs on every machine."""
    rng = np.random.default_rng(0)
    pairs: dict[str, str] = {}
    while len(pairs) < num_pairs:
        source, target = draw_quantity(rng)
        pairs[source] = target
    return PairTable(name=NAME, pairs=tuple(Pair(*pair) for pair in pairs.items()))


def draw_quantity(rng: np.random.Generator) -> Pair:
    """A number, a fraction, a mixed number, a decimal or a range; mostly with a unit."""
    unit = [*UNITS, ""][rng.integers(len(UNITS) + 1)]
    whole, fraction = _whole(rng), [*FRACTIONS][rng.integers(len(FRACTIONS))]
    kind = rng.choice(
        ["whole", "fraction", "mixed", "decimal", "range"], p=[0.2, 0.1, 0.3, 0.2, 0.2]
    )
    if kind == "fraction":
        written, said = fraction, FRACTIONS[fraction]
        if unit:
            word = UNITS[unit]
            return Pair(
                f"{written} {unit}", f"{said} of {'an' if word[0] in 'aeiou' else 'a'} {word}"
            )
    elif kind == "mixed":
        written, said = f"{whole} {fraction}", f"{number_words(whole)} and {FRACTIONS[fraction]}"
    elif kind == "decimal":
        digit = int(rng.integers(1, 10))
        written, said = f"{whole}.{digit}", f"{number_words(whole)} point {ONES[digit]}"
    elif kind == "range":
        upper = whole + int(rng.integers(1, 10))
        written, said = f"{whole}-{upper}", f"{number_words(whole)} to {number_words(upper)}"
    else:
        written, said = str(whole), number_words(whole)
    if not unit:
        return Pair(written, said)
    return Pair(f"{written} {unit}", f"{said} {UNITS[unit]}{'' if written == '1' else 's'}")


def number_words(number: int) -> str:
    """A whole number from 0 to 999 in words, such as `one hundred twenty-one`."""
    if not 0 <= number < 1000:
        raise ValueError(f"number={number} must be from 0 to 999")
    hundreds, rest = divmod(number, 100)
    if hundreds:
        return f"{ONES[hundreds]} hundred" + (f" {number_words(rest)}" if rest else "")
    if rest < len(ONES):
        return ONES[rest]
    tens, ones = divmod(rest, 10)
    return TENS[tens - 2] + (f"-{ONES[ones]}" if ones else "")


def _whole(rng: np.random.Generator) -> int:
    """From 1 to 990, as many of one digit as of two and of three."""
    return int(rng.integers(1, (10, 100, 991)[rng.integers(3)]))

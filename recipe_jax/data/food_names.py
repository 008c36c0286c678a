"""Written names of foods to the canonical foods of the vocabulary.

The packaged table `assets/names.csv.gz` maps about twelve thousand written names; rules carry it to
names it does not hold: words that say nothing about the food ("fresh", "low-sodium") are dropped,
then the longest known phrase is looked for, the head noun first, and a name misspelt by a letter
or two is forgiven.
"""

import csv
import dataclasses
import functools
import gzip
import importlib.resources
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from rapidfuzz import fuzz, process

from recipe_jax.data.files import DataError

MatchedBy = Literal["exact", "strip", "phrase", "spelling"]

# Of 100: two letters of twenty may differ.
SPELLING_SCORE = 90
_PARENTHESES = re.compile(r"\([^)]*\)?")
_POSSESSIVE = re.compile(r"'s\b")
_PUNCTUATION = re.compile(r"[^\w\-&%'/⅓.]+")
# Spellings that the table does not have: singular forms of "chilies" and "chilis".
_CHILE = re.compile(r"\b(?:chily|chilly|chilli|chili)\b")
_SPLIT = re.compile(
    r"\b(?:such as|preferably|with|packed in|in|from|for|plus|without|of your choice|including)\b"
)
_IRREGULAR = {
    "leaves": "leaf", "loaves": "loaf", "halves": "half", "knives": "knife", "calves": "calf",
    "cookies": "cookie", "brownies": "brownie", "pies": "pie", "smoothies": "smoothie",
    "veggies": "veggie", "chiles": "chile", "olives": "olive",
}  # fmt: skip
_SINGULAR_ALREADY = frozenset(
    "hummus asparagus couscous molasses swiss brussels schnapps citrus watercress grits bass cress "
    "boneless skinless seedless anise bitters haricots verts lotus express hibiscus "
    "cactus kermes ras swiss".split()
)
# Words about state, cut, brand of process or degree, which leave the food what it is.
_MODIFIERS = frozenset(
    "fresh freshly frozen chopped diced sliced minced grated shredded crushed peeled cooked "
    "uncooked raw ripe firm firm-ripe organic natural large medium small extra extra-large jumbo "
    "fine finely coarse coarsely thin thinly thick thick-cut thickly lean boneless skinless "
    "bone-in skin-on low-sodium low-fat lowfat reduced-fat reduced-sodium fat-free nonfat fat free "
    "unsweetened sweetened salted unsalted toasted roasted plain whole halved quartered "
    "pitted seeded seedless cold hot warm chilled melted softened packed light "
    "good-quality good quality best high-quality purchased store-bought homemade prepared "
    "bottled canned jarred packaged refrigerated leftover assorted mixed mild spicy sweet young "
    "baby mini miniature tender trimmed drained rinsed washed dry dried pure real imported "
    "unpeeled peeled unbleached bleached smoked pickled marinated thawed bulk "
    "farm-raised wild-caught free-range grass-fed cage-free low fat sodium gluten-free "
    "center-cut day-old soft stale crusty cubed torn julienned shelled unshelled hulled "
    "additional more other any favorite your about few several instant quick quick-cooking "
    "old-fashioned all-natural no-salt-added less-sodium lower-sodium bite-size bite-sized "
    "style brand flavored premium classic original traditional gourmet very well-shaken "
    "matchstick ground slender long short round heirloom garden california italian french "
    "mexican asian spanish greek thai american european japanese chinese genuine "
    "vine-ripened hothouse english firmly lightly loosely unseasoned strong solid-pack "
    "vegan kosher bittersweet".split()
)
# Words after the head noun that only give the food's form.
_FORMS = frozenset(
    "leaf piece strip slice root half wedge floret cube chunk ring stalk stick sprig bulb "
    "kernel spear fillet filet crown clove segment tip round shaving ribbon matchstick bit head "
    "heart stem half quarter coin sliver bunch ear steak meat flesh pulp blend mix product "
    "granule flake powder can jar bag package container".split()
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """A canonical food, and how the written name led to it."""

    food: str
    by: MatchedBy


def normalise(name: str) -> str:
    """A written name in the form of the table: lower case, singular words, no punctuation.

    `"Confectioners' Sugar (sifted)"` becomes `"confectioner sugar"`.
    """
    text = name.lower().replace("®", "").replace("™", "").replace("\u2019", "'")
    text = _POSSESSIVE.sub("", _PARENTHESES.sub(" ", text)).replace("s' ", "s ")
    words = _PUNCTUATION.sub(" ", text).split()
    return " ".join(filter(None, (_singular(word.strip(".-/")) for word in words)))


def _singular(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word in _SINGULAR_ALREADY or len(word) < 4 or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith("oes") or re.search(r"(?:ch|sh|x|ss|zz)es$", word):
        return word[:-2]
    return word[:-1] if word.endswith("s") else word


class FoodNames:
    """Looks written names up among the canonical foods.

    Args:
        names: normalised written name to canonical food, or to "" where it is known to be none.
        foods: the canonical foods.

    Raises:
        DataError: a name leads to a food outside `foods`.
    """

    def __init__(self, names: Mapping[str, str], foods: Sequence[str]):
        known = set(foods)
        for name, food in names.items():
            if food and food not in known:
                raise DataError(
                    f"names: name={name!r}: food={food!r} is not among the {len(known)} foods"
                )
        self._foods = list(foods)
        self._names = {**{normalise(food): food for food in foods}, **names}
        # A misspelt name is looked for among those with its first letter: that is rarely wrong.
        self._spellings: dict[str, list[str]] = defaultdict(list)
        for name, food in self._names.items():
            if food and len(name) > 5:
                self._spellings[name[0]].append(name)
        self.match = functools.cache(self._match)

    def _match(self, name: str) -> Match | None:
        """The canonical food that `name` means; None where no rule is sure enough."""
        written = normalise(name)
        if not written:
            return None
        spellings = list(dict.fromkeys((written, _CHILE.sub("chile", written))))
        for spelling in spellings:
            if food := self._names.get(spelling):
                return Match(food=food, by="exact")
        if written in self._names and len(spellings) == 1:
            return None
        for spelling in spellings:
            for phrase in self._phrases(spelling):
                if food := self._stripped(phrase):
                    return Match(food=food, by="strip")
                if food := self._longest_phrase(phrase):
                    return Match(food=food, by="phrase")
        nearest = process.extractOne(
            written,
            self._spellings.get(written[0], ()),
            scorer=fuzz.ratio,
            score_cutoff=SPELLING_SCORE,
        )
        return Match(food=self._names[nearest[0]], by="spelling") if nearest else None

    def suggest(self, name: str, *, limit: int = 3) -> list[str]:
        """The canonical foods nearest to `name`, best first: for messages on unknown foods."""
        found = [match.food] if (match := self.match(name)) else []
        near = process.extract(normalise(name), self._foods, scorer=fuzz.WRatio, limit=limit)
        return list(dict.fromkeys([*found, *(food for food, _, _ in near)]))[:limit]

    def _phrases(self, written: str) -> Iterator[str]:
        """The name up to its first preposition, then what follows ("pasta such as rigatoni")."""
        parts = [part.strip() for part in _SPLIT.split(written)]
        yield from dict.fromkeys(filter(None, parts[:2]))

    def _stripped(self, phrase: str) -> str:
        words = phrase.split()
        # Dropping from the left keeps "dried" in "large dried basil" for as long as it can.
        for start in range(len(words)):
            if start and words[start - 1] not in _MODIFIERS:
                break
            if food := self._names.get(" ".join(words[start:])):
                return food
        kept = " ".join(word for word in words if word not in _MODIFIERS)
        return self._names.get(kept, "") if kept else ""

    def _longest_phrase(self, phrase: str) -> str:
        """The food of the longest known run of words that holds the head noun."""
        words = phrase.split()
        while len(words) > 1 and words[-1] in _FORMS:
            if food := self._head(words):
                return food
            words = words[:-1]
        return self._head(words) or self._inner(words)

    def _head(self, words: Sequence[str]) -> str:
        for start in range(len(words)):
            if food := self._names.get(" ".join(words[start:])):
                return food
        return ""

    def _inner(self, words: Sequence[str]) -> str:
        """A phrase of at least two words anywhere: brands and forms may follow the food."""
        for length in range(len(words) - 1, 1, -1):
            for start in range(len(words) - length, -1, -1):
                if food := self._names.get(" ".join(words[start : start + length])):
                    return food
        return ""


def read_food_names(foods: Sequence[str]) -> FoodNames:
    """The packaged table of written names, for the canonical `foods`."""
    asset = importlib.resources.files("recipe_jax") / "assets/names.csv.gz"
    text = gzip.decompress(asset.read_bytes()).decode()
    return FoodNames({row["name"]: row["food"] for row in csv.DictReader(io.StringIO(text))}, foods)

"""Kitchen units: how they are written, and grams, millilitres or pieces behind them."""

import dataclasses
import functools
import re

import pint

_MASS = {"milligram": "mg", "gram": "g", "kilogram": "kg", "ounce": "oz", "pound": "lb"}
_VOLUME = {
    "teaspoon": "tsp",
    "tablespoon": "tbsp",
    "fluid_ounce": "floz",
    "cup": "cup",
    "pint": "pint",
    "quart": "quart",
    "gallon": "gallon",
    "milliliter": "ml",
    "centiliter": "cl",
    "deciliter": "dl",
    "liter": "l",
}
# Millilitres of what cooks call by these names; a bar's measures and the kitchen's small ones.
_SMALL_VOLUMES = {
    "dash": 0.6,
    "pinch": 0.31,
    "drop": 0.05,
    "splash": 5.0,
    "jigger": 44.4,
    "shot": 44.4,
    "part": 29.6,
    "dollop": 30.0,
    "drizzle": 10.0,
    "knob": 15.0,
    "dessertspoon": 10.0,
    "spoonful": 10.0,
    "glass": 240.0,
    "mug": 240.0,
    "shake": 0.6,
    "grind": 0.2,
    "scoop": 60.0,
    "ladle": 120.0,
    "pony": 29.6,
    "handful": 120.0,
}
# Packages, which hold an amount that the line or the food must tell.
CONTAINERS = frozenset(
    "can package jar bottle container box bag envelope packet carton tub pouch tin tube sachet "
    "pack basket canister sleeve tray punnet bucket pot case".split()
)
_PIECES = frozenset(
    "clove head bunch sprig stalk rib stick slice strip piece leaf ear fillet sheet loaf bulb "
    "square cube spear link bar block ball wedge round wheel rack pod chop breast thigh wing leg "
    "steak roast half quarter heart stem branch log cake chunk segment section rasher slab "
    "recipe batch twist cluster knuckle hand patty roll floret crown drumstick rind wrapper "
    "cutlet medallion count serving item layer peel tip bundle bouquet disk curl ring shank "
    "string vine top pair inch cutting finger lobe shell berry kernel seed round".split()
)
_ALIASES = {
    "c": "cup", "t": "teaspoon", "tsp": "teaspoon", "ts": "teaspoon", "tbsp": "tablespoon",
    "tbs": "tablespoon", "tb": "tablespoon", "tblsp": "tablespoon", "tbl": "tablespoon",
    "tablespoonful": "tablespoon", "teaspoonful": "teaspoon", "oz": "ounce", "lb": "pound",
    "lbs": "pound", "g": "gram", "gm": "gram", "gr": "gram", "kg": "kilogram", "kilo": "kilogram",
    "mg": "milligram", "ml": "milliliter", "millilitre": "milliliter", "cc": "milliliter",
    "cl": "centiliter", "dl": "deciliter", "l": "liter", "litre": "liter", "pt": "pint",
    "qt": "quart", "gal": "gallon", "floz": "fluid_ounce", "pkg": "package", "pkt": "packet",
    "tin": "can", "in": "inch", "leave": "leaf", "loave": "loaf", "halve": "half",
    "bunche": "bunch", "dashe": "dash", "pinche": "pinch", "boxe": "box", "pouche": "pouch",
    "batche": "batch", "inche": "inch", "splashe": "splash", "branche": "branch",
    "glasse": "glass", "patty": "patty", "pattie": "patty", "punnet": "basket", "rasher": "slice",
    "pack": "package", "bouquet": "bunch", "baseket": "basket", "filet": "fillet",
    "shott": "shot", "tbsps": "tablespoon", "tsps": "teaspoon", "berrie": "berry",
    "anche": "inch", "individual": "", "cupful": "cup", "pinchful": "pinch", "carton": "carton",
}  # fmt: skip
_SIZES = {
    "small": "small", "sm": "small", "tiny": "small", "mini": "small", "miniature": "small",
    "baby": "small", "little": "small", "smallest": "small", "smaller": "small",
    "medium": "medium", "md": "medium", "medium-size": "medium", "medium-sized": "medium",
    "large": "large", "lg": "large", "big": "large", "extra-large": "large", "jumbo": "large",
    "huge": "large", "fat": "large", "plump": "large",
}  # fmt: skip
# How much more than level a spoon or cup holds.
_FACTORS = {"heaping": 1.25, "heaped": 1.25, "rounded": 1.15, "generous": 1.1, "scant": 0.9}
_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """A unit as written on a line.

    Attributes:
        name: singular, in full; empty where none is known.
        size: "small", "medium" or "large", else empty.
        factor: how many of the unit "heaping" or "scant" make of one.
        container: the package that the unit is the size of ("ounce can").
    """

    name: str
    size: str = ""
    factor: float = 1.0
    container: str = ""


@functools.cache
def read_unit(text: str) -> Unit:
    """The unit in words such as `"large heads"`, `"fl oz bottles"` or `"heaping cups"`."""
    lowered = text.lower().replace("fluid ounces", "floz").replace("fluid ounce", "floz")
    lowered = re.sub(r"\bfl\.? ?(oz|ounces?)\b\.?", "floz", lowered)
    name = size = container = ""
    factor = 1.0
    for word in _WORD.findall(lowered):
        if word in _SIZES:
            size = size or _SIZES[word]
        elif word in _FACTORS:
            factor = _FACTORS[word]
        else:
            known = _singular_unit(word)
            if known in CONTAINERS and name:
                container = container or known
            name = name or known
    return Unit(name=name, size=size, factor=factor, container=container)


def _singular_unit(word: str) -> str:
    for form in (word, word.removesuffix("s"), word.removesuffix("es")):
        form = _ALIASES.get(form, form)
        if form in _MASS or form in _VOLUME or form in _SMALL_VOLUMES:
            return form
        if form in CONTAINERS or form in _PIECES:
            return form
    return ""


def is_mass(unit: str) -> bool:
    """Whether the unit weighs."""
    return unit in _MASS


def is_volume(unit: str) -> bool:
    """Whether the unit is a volume, bar measures and pinches included."""
    return unit in _VOLUME or unit in _SMALL_VOLUMES


@functools.cache
def grams_per(unit: str) -> float:
    """Grams in a unit of mass."""
    return float(pint.Quantity(1.0, _MASS[unit]).to("gram").magnitude)


@functools.cache
def milliliters_per(unit: str) -> float:
    """Millilitres in a unit of volume; US customary cups and spoons."""
    if unit in _SMALL_VOLUMES:
        return _SMALL_VOLUMES[unit]
    return float(pint.Quantity(1.0, _VOLUME[unit]).to("milliliter").magnitude)

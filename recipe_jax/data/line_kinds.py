"""Which lines of a recipe are no ingredient: headings, equipment, notes to the cook."""

import re
from collections.abc import Sequence
from typing import Literal

LineKind = Literal["ingredient", "heading", "equipment", "note"]

_LABELLED_EQUIPMENT = re.compile(
    r"^(?:(?:special|other|optional|you will also need)\W+)?"
    r"(?:equipment|tools?|utensils?|supplies)\b\W",
    re.IGNORECASE,
)
_LABELLED_NOTE = re.compile(
    r"^\W*(?:(?:optional|suggested|possible|additional)\s+)?"
    r"(?:garnish(?:es)?|accompaniments?|toppings?|serving (?:suggestions?|ideas?)|notes?|tips?|"
    r"ingredient info|market tips?|test[- ]kitchen tips?|cooks?['\u2019]?s? notes?|variations?|"
    r"do[- ]ahead|serve with|for serving|to serve|for (?:the )?garnish|substitutions?|"
    r"as an? accompaniment)"
    r"(?:[ ,]+(?:if \w+[^:]{0,40}|optional|such as|suggestions?|ideas?)|\s*\([^)]*\))?\s*(?::|$)",
    re.IGNORECASE,
)
_SENTENCE_NOTE = re.compile(
    r"^\W*(?:available (?:at|in|from|online)|sold (?:at|in)|see (?:note|recipe|cook)|"
    r"click here|make .{0,20}day\)?$)|\b(?:(?:are|is|can be) (?:available|sold|found)|"
    r"available (?:at|in) (?:\w+ ){0,3}(?:markets?|stores?|shops?|supermarkets?))\b",
    re.IGNORECASE,
)
_ENDS_WITH_COLON = re.compile(r":[\s*]*$")
_STARTS_WITH_AMOUNT = re.compile(
    r"^\W*(?:an? |one |two |three |four |six )?[\d¼½¾⅓⅔⅛⅜⅝⅞]", re.IGNORECASE
)
_PARENTHESES = re.compile(r"\([^)]*\)?")
# A footnote or advice to the cook: a sentence of this many words that starts with no amount.
_LONG_SENTENCE = re.compile(r"^(?:\S+\s+){11,}\S+[.!]\W*$")
_FOOTNOTE = re.compile(r"^\*+\s*[A-Za-z](?:\S*\s+){5,}\S+")
# "FOR THE SAUCE", "For glaze": a heading where no amount and little else follows.
_FOR_THE = re.compile(r"^for (?:the )?[^\d,;(]{2,40}$", re.IGNORECASE)
_BARE_HEADINGS = frozenset(
    "batter base brine coating crust crumble dough dressing filling frosting garnish garnishes "
    "glaze gravy icing marinade pastry relish rub salad sauce spice stuffing syrup topping "
    "toppings vinaigrette ingredients accompaniments assembly cake meringue custard streusel "
    "optional".split()
)
_HAS_AMOUNT = re.compile(r"[\d¼½¾⅓⅔⅛⅜⅝⅞]")

_EQUIPMENT_WORDS = (
    r"skewers?|toothpicks?|parchment(?: paper)?|"
    r"(?:wax|waxed|greaseproof|baking|butcher|rice cooker) paper|"
    r"(?:aluminum|aluminium|tin|tinfoil|heavy[- ]duty|kitchen|nonstick|wrap®?) ?foil|tinfoil|foil|"
    r"twine|kitchen string|butcher['\u2019]?s?['\u2019]? string|cheese ?cloth|muslin|thermometers?|"
    r"mandolines?|ramekins?|(?:cookie|biscuit|melon[- ]ball|pastry|doughnut|donut|pizza) cutters?|"
    r"rolling pin|food processor|blender|stand mixer|spice (?:mill|grinder)|mortar and pestle|"
    r"coffee (?:grinder|filters?)|coffee/spice grinder|deep[- ]fr(?:y|yer)(?:er)?|"
    r"(?:cake|pie|tart|loaf|muffin|baking|roasting|springform|bundt|jelly[- ]roll|sheet|tube|"
    r"sauce|saute|frying|grill|quiche|pizza|square|round|metal|steel|nonstick|brownie) ?pans?|"
    r"skillet|baking (?:sheets?|dish(?:es)?|stone)|(?:pie|soup|dinner|paper) plates?|gratin dish|"
    r"souffl[eé] dish(?:es)?|muffin (?:tins?|cups?|liners?)|cupcake (?:liners?|papers?|wrappers?)|"
    r"(?:baking|paper|foil) (?:cups?|liners?|cases?|doilies|towels?|bags?)|pie weights?|"
    r"(?:pastry|piping|plastic|freezer|oven|cooking|roasting|zip(?:per)?[- ]?top|resealable|"
    r"ziploc|ziplock|brining|storage|turkey|brown paper|paper lunch|sandwich|cellophane) bags?|"
    r"(?:canning|mason|preserving|pint|glass|sterilized|half[- ]pint|quart)[\w\- ]* jars?|"
    r"jars? with lids?|(?:popsicle|lollipop|wooden|craft|candy|sucker|ice[- ]pop|frozen pop|"
    r"caramel apple|cake pop|pop) sticks?|wood(?:en)? (?:chips?|chunks?|planks?|sticks?|dowels?)|"
    r"(?:hickory|mesquite|apple ?wood|cherry ?wood|oak|pecan|alder|smoking|cedar|grilling)"
    r"(?: wood)? (?:chips|chunks|planks?|wood)|planks?|pl[aá]stic wrap|cling ?film|"
    r"ice[- ]cream (?:maker|machine)|ice[- ]pop molds?|candy molds?|molds?|(?:pastry|kitchen) "
    r"brush(?:es)?|(?:pastry|decorating|piping|star) tips?|charcoal(?: briquettes)?|blowtorch|"
    r"(?:cocktail|wooden) picks?|drinking straws?|straws|slow cooker liners?|slow cooker|"
    r"(?:rubber|latex|disposable|plastic) gloves|ricer|dutch oven|casserole dish|stockpot|wok|"
    r"microplane|grater|peeler|slicer|spatulas?|whisk|colander|sieve|strainer|wire rack|"
    r"(?:cake|candle|cardboard)[- ](?:board|round|circle|stand)s?|birthday candles?|candles|"
    r"silpat|cooking twine|string|bowls?|(?:glass|mixing) bottles?|saucepan|chopsticks"
)
_ENDS_IN_EQUIPMENT = re.compile(rf"(?<![\w-])(?:{_EQUIPMENT_WORDS})$", re.IGNORECASE)
_NAME_TAIL = re.compile(
    r"\s*(?:,|\(|;|\bwith\b|\bfor\b|\bfitted\b|\bto\b|\bin\b|\bor\b|\band (?:lids?|rings?)\b|\bof\b"
    r"|\bsuch\b|\bcut\b|\bsoaked\b|\bplus\b).*$",
    re.IGNORECASE,
)
_PIECES_OF = re.compile(
    r"\b(?:pieces?|sheets?|squares?|strips?|lengths?|packages?|roll|rounds?) (?:of )?(?="
    r"(?:[\w\-]+ )?(?:cheesecloth|foil|parchment|aluminum|twine|string|wax))",
    re.IGNORECASE,
)
# What the words above are part of in a food's name.
_FOOD_AFTER_ALL = re.compile(
    r"\b(?:drippings?|juices|bread ?bowls?|taco bowls?|string (?:cheese|bean)|stick cinnamon|"
    r"potato straws|apple ?wood[- ]smoked|tortilla bowls?|chocolate|candy bowls?|cheese straws|"
    r"pretzel (?:sticks|rods)|bread ?sticks?|cinnamon sticks?|candy|licorice)\b",
    re.IGNORECASE,
)


def kind_by_text(text: str) -> LineKind:
    """What a line is by its words alone; "ingredient" where they do not tell otherwise."""
    if not any(character.isalpha() for character in text):
        return "note"
    if _LABELLED_EQUIPMENT.match(text):
        return "equipment"
    bare = text.strip(" .*-\u2013()[]").lower()
    if bare in _BARE_HEADINGS or (_FOR_THE.match(text) and not _HAS_AMOUNT.search(text)):
        return "heading"
    if _LABELLED_NOTE.match(text):
        is_label_alone = _ENDS_WITH_COLON.search(text) is not None
        return "heading" if is_label_alone else "note"
    if not _STARTS_WITH_AMOUNT.match(text):
        outside = _PARENTHESES.sub(" ", text)
        if _SENTENCE_NOTE.search(outside) or _FOOTNOTE.match(text) or _LONG_SENTENCE.match(outside):
            return "note"
        if _ENDS_WITH_COLON.search(text):
            return "heading"
    if not _HAS_AMOUNT.search(text) and bare.split()[-1:] == ["ingredients"]:
        return "heading"
    return "ingredient"


def kind_by_name(names: Sequence[str], text: str) -> LineKind:
    """What a line is by the names that the parser found in it: equipment or an ingredient.

    Args:
        names: names of things, as the parser cut them out.
        text: the line; heads of names end before its first comma or preposition.
    """
    if not names and text[:1] in "*(":
        return "note"
    if _FOOD_AFTER_ALL.search(text):
        return "ingredient"
    heads = [_NAME_TAIL.sub("", _PIECES_OF.sub("", part)) for part in (*names[:1], text)]
    if any(_ENDS_IN_EQUIPMENT.search(head) for head in heads):
        return "equipment"
    return "ingredient"

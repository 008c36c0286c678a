"""HTML as a tree: every text is escaped when the tree is written, so no text can become markup."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias
from xml.etree import ElementTree

Element: TypeAlias = ElementTree.Element
Child: TypeAlias = Element | str | None


def element(tag: str, *children: Child, **attributes: str) -> Element:
    """An element with texts and elements in it; None is left out.

    Args:
        tag: its name.
        children: in order.
        attributes: `class_` stands for `class`.
    """
    made = ElementTree.Element(
        tag, {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    )
    for child in children:
        if isinstance(child, str):
            _append_text(made, child)
        elif child is not None:
            made.append(child)
    return made


def table(
    caption: str,
    header: Sequence[str],
    rows: Iterable[Sequence[Child]],
    *,
    numeric: Iterable[int] = (),
    class_: str = "",
) -> Element:
    """A table whose first column heads its rows.

    Args:
        caption: what the table shows; it is a heading for those who cannot see it.
        header: of the columns.
        rows: cells.
        numeric: which columns hold numbers and are aligned to the right.
        class_: of the table.
    """
    right = {column: {"class_": "number"} for column in numeric}
    head = [element("th", text, scope="col", **right.get(j, {})) for j, text in enumerate(header)]
    body = element("tbody")
    for first, *rest in rows:
        cells = [element("td", cell, **right.get(j, {})) for j, cell in enumerate(rest, start=1)]
        body.append(element("tr", element("th", first, scope="row"), *cells))
    made = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *head)),
        body,
        class_=class_,
    )
    return element("div", made, class_="scroll")


def drawing(svg: str) -> Element:
    """An SVG drawing as an element."""
    return ElementTree.fromstring(svg)


def page(*, title: str, style: str, body: Element, language: str = "en") -> str:
    """A whole page; nothing in it is loaded from elsewhere.

    The head is written by the rules of HTML, where a style sheet is not escaped.  The body is
    written by those of XML, which escape `<` in attributes too; so it must hold no void elements.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", style),
    )
    written_head = ElementTree.tostring(head, "unicode", method="html")
    written_body = ElementTree.tostring(body, "unicode", short_empty_elements=False)
    opening = f'<!doctype html>\n<html lang="{language}">'
    return f"{opening}{written_head}{written_body}</html>\n"


def _append_text(parent: Element, text: str) -> None:
    if len(parent):
        parent[-1].tail = (parent[-1].tail or "") + text
    else:
        parent.text = (parent.text or "") + text

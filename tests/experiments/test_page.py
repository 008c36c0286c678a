"""The page in a real browser: what it shows, and that it asks nobody but its server."""

import shutil
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from served import ITEMS, make_recommender, make_service, served

from experiments.semantic_ids.desk import Limits, Service
from experiments.semantic_ids.recommending import Recommendation, Recommendations, recommend
from experiments.semantic_ids.trained import Recommender

pytestmark = [
    pytest.mark.browser,
    # Gradio calls pandas as this will no longer be called.
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),
]


class Visit(NamedTuple):
    """A page, and what went on behind it: addresses asked for, and whatever went wrong."""

    page: Page
    asked: list[str]
    wrong: list[str]


@pytest.fixture(scope="module")
def recommender() -> Recommender:
    found = make_recommender()
    recommend(found, ITEMS[:1], k=1)
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    path = shutil.which("chromium")
    assert path, "there is no chromium on the PATH, and RECIPE_JAX_BROWSER=required"
    with sync_playwright() as playwright:
        # Inside a container there is no right to make sandboxes.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def visit(browser, url: str) -> Visit:
    page = browser.new_page()
    found = Visit(page, [], [])
    page.on("request", lambda request: found.asked.append(request.url))
    # A stream of events that the page itself closes counts as aborted.
    page.on(
        "requestfailed",
        lambda request: "ABORTED" in request.failure or found.wrong.append(request.url),
    )
    page.on("pageerror", lambda error: found.wrong.append(str(error)))
    page.on(
        "console",
        lambda said: said.type in ("error", "warning") and found.wrong.append(said.text),
    )
    page.on(
        "response",
        lambda got: got.status >= 400 and found.wrong.append(f"{got.status}: {got.url}"),
    )
    page.goto(url)
    expect(page.get_by_role("button", name="Recommend")).to_be_visible(timeout=60_000)
    return found


def ask(page: Page, box: str, text: str, line: str) -> list[list[str]]:
    """Fill a box, press the button; the table's rows, once a line like this is shown."""
    page.get_by_label(box).fill(text)
    page.get_by_role("button", name="Recommend").click()
    shown = page.get_by_label("answer")
    expect(shown).to_have_value(line, timeout=30_000)
    cells = page.locator("[data-testid^=cell]").all_inner_texts()
    return [cells[at : at + 3] for at in range(0, len(cells), 3)]


def test_the_page_recommends_and_refuses(browser, recommender: Recommender):
    service = make_service(recommender)
    fixed = service._replace(
        by_history=lambda history, k: service.by_history(history, k)._replace(milliseconds=1.25)
    )
    with served(fixed, Limits(max_k=30), page=True) as url:
        page, asked, wrong = visit(browser, url)
        assert page.title() == "Recommendations that exist"
        expect(page.get_by_label("query")).to_have_count(0)  # this model reads none
        history = [ITEMS[3], ITEMS[5]]
        rows = ask(page, "history", "\n".join(["", *history, " "]), "10 items in 1.2 ms")
        found = recommend(recommender, history, k=10).items
        assert rows == [[row.item, row.semantic_id, f"{row.score:.3f}"] for row in found]
        line = "item 'no such <b>item</b>' of the history is none of the model's 40 items"
        assert ask(page, "history", "item 1\nno such <b>item</b>", line) == []
        line = "history or query must be given, one of them: neither is"
        assert ask(page, "history", "", line) == []
        many = "\n".join(["item 1"] * 257)
        line = "history has 257 items, must have at most 256: give the latest"
        assert ask(page, "history", many, line) == []
        page.get_by_role("spinbutton").fill("15")
        assert len(ask(page, "history", "item 1", "15 items in 1.2 ms")) == 15
        assert all(address.startswith((url, "data:", "blob:")) for address in asked), asked
        assert not wrong


def test_a_query_is_asked_and_names_are_shown_as_they_are(browser):
    trap = "<img src=x onerror=\"document.title='run'\"> **bold** $x$"

    def by_query(query: str, k: int) -> Recommendations:
        if query == "nothing":
            raise ValueError(f"no item is like {query!r}")
        return Recommendations((Recommendation(trap, "[SEM_0_1]", 0.5),), 0, 1.0)

    with served(Service(1, by_query=by_query), Limits(), page=True) as url:
        page, asked, wrong = visit(browser, url)
        expect(page.get_by_label("history")).to_have_count(0)
        rows = ask(page, "query", "soap", "1 items in 1.0 ms")
        assert rows == [[trap, "[SEM_0_1]", "0.500"]]
        assert ask(page, "query", "nothing", "no item is like 'nothing'") == []
        assert page.title() == "Recommendations that exist"
        assert all(address.startswith((url, "data:", "blob:")) for address in asked), asked
        assert not wrong

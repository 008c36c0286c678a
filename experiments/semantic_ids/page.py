"""A small page over the same desk as `POST /recommend`."""

from typing import TYPE_CHECKING

import gradio as gr
from gradio.themes import Base

from experiments.semantic_ids.desk import Ask, Desk, RefusedError

if TYPE_CHECKING:
    from fastapi import FastAPI

TITLE = "Recommendations that exist"


def add_page(app: "FastAPI", desk: Desk) -> None:
    """Show a page at `/` of an application.

    All that it needs comes from here: its fonts are the machine's own, nothing is counted
    elsewhere.
    """
    gr.mount_gradio_app(
        app,
        make_page(desk),
        path="/",
        theme=Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
    )


def make_page(desk: Desk) -> gr.Blocks:
    """A box for a history or a query, how many items, and a table of them."""

    async def answer(
        history: str | None, query: str | None, k: float
    ) -> tuple[list[list[str]], str]:
        """A box that is not shown gives None."""
        names = [line.strip() for line in (history or "").splitlines() if line.strip()]
        try:
            ask = Ask(history=names or None, query=(query or "").strip() or None, k=round(k))
            found = await desk.answer(ask)
        except RefusedError as error:
            return [], str(error)
        rows = [[row.item, row.semantic_id, f"{row.score:.3f}"] for row in found.items]
        return rows, f"{len(rows)} items in {found.milliseconds:.1f} ms"

    service, most = desk.service, min(desk.limits.max_k, desk.service.num_items)
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}\n\n{service.num_items:,} items")
        history = gr.Textbox(
            label="history: names of items, one a line, the latest last",
            lines=5,
            visible=service.by_history is not None,
        )
        query = gr.Textbox(label="query: what is wanted", visible=service.by_query is not None)
        k = gr.Slider(1, max(2, most), value=min(10, most), step=1, label="how many")
        button = gr.Button("Recommend", variant="primary")
        line = gr.Textbox(label="answer", interactive=False)
        table = gr.Dataframe(
            headers=["item", "semantic ID", "score"],
            datatype="str",
            type="array",
            interactive=False,
        )
        button.click(
            answer,
            [history, query, k],
            [table, line],
            show_progress="hidden",
            concurrency_limit=None,
            api_visibility="private",
        )
    return page

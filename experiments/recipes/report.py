"""The report of a demo or an evaluation: one HTML file that needs nothing else, and its pictures.

Whatever is named on the page is escaped, every number comes with its unit, and a diet is told as
what was checked.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.recipes.html_elements import Child, Element, drawing, element, page, table
from experiments.recipes.report_data import (
    AttentionMap,
    Attribution,
    Explanation,
    MethodRow,
    MetricColumn,
    MetricTable,
    Pantry,
    Portion,
    Recipe,
    Report,
    TrainingRun,
)
from experiments.recipes.report_figures import (
    attention_figure,
    metric_figure,
    named_figures,
    training_figure,
)
from recipe_jax import plots
from recipe_jax.data.files import replace_file
from recipe_jax.diets import Finding, excluded_contents

_STYLE_SHEET = Path(__file__).with_name("report.css")
_SPACE = "\N{NO-BREAK SPACE}"
_INTERVAL = "\N{EN DASH}"


def write_report(path: Path, report: Report) -> None:
    """Write the page under a temporary name, then rename: never half a file.

    Raises:
        OSError: a full disk or a folder that cannot be written; `path` is as it was.
        ValueError: what cannot be drawn, such as attention that sums to more than 1.
    """
    text = report_page(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode())


def write_plots(folder: Path, report: Report) -> list[Path]:
    """Write the report's figures as PNG pictures on white; returns where they are.

    Raises:
        OSError: a full disk or a folder that cannot be written.
        ValueError: what cannot be drawn, such as attention that sums to more than 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in named_figures(report):
        paths.append(folder / f"{name}.png")
        replace_file(paths[-1], plots.to_png(figure))
    return paths


def report_page(report: Report) -> str:
    """The page as text."""
    sections = [
        ("recipes", "Recipes", [_pantry(pantry) for pantry in report.pantries]),
        ("attention", "Attention", [_attention(i, m) for i, m in enumerate(report.attention)]),
        ("metrics", "Beside the baselines", [_metrics(i, t) for i, t in enumerate(report.tables)]),
        ("training", "Training", [_training(i, run) for i, run in enumerate(report.training)]),
        ("limits", "Limits", [_limits(report.limits)] if report.limits else []),
    ]
    shown = [section for section in sections if section[2]]
    links = [element("a", title, href=f"#{anchor}") for anchor, title, _ in shown]
    main = element("main", _header(report, links))
    for anchor, title, parts in shown:
        main.append(element("section", element("h2", title), *parts, id=anchor))
    style = _STYLE_SHEET.read_text(encoding="utf-8")
    return page(title=report.title, style=style, body=element("body", main))


def _header(report: Report, links: Sequence[Element]) -> Element:
    facts = element("dl", class_="facts")
    for name, value in report.facts.items():
        facts.append(element("div", element("dt", name), element("dd", value)))
    return element(
        "header",
        element("h1", report.title),
        element("p", report.data, class_="lead"),
        facts if len(facts) else None,
        element("nav", *links, aria_label="Sections"),
    )


# Recipes


def _pantry(pantry: Pantry) -> Element:
    asked = element("dl", class_="asked")
    for name, text in (
        ("Required", ", ".join(pantry.required) or "nothing"),
        ("Forbidden", ", ".join(pantry.forbidden) or "nothing"),
        ("Diet rule", "none" if pantry.diet is None else _rule(pantry.diet)),
    ):
        asked.extend([element("dt", name), element("dd", text)])
    recipes = [_recipe(recipe, pantry.diet) for recipe in pantry.recipes]
    return element("article", element("h3", pantry.name), asked, *recipes, class_="card")


def _rule(diet: str) -> str:
    excluded = excluded_contents(diet)
    name = "" if excluded == {diet} else f"{diet}, "
    return f"{name}excludes {', '.join(sorted(excluded))}"


def _recipe(recipe: Recipe, diet: str | None) -> Element:
    made = element("div", _portions(recipe, diet), class_="recipe")
    if diet is not None:
        made.append(element("p", diet_sentence(recipe.findings, diet), class_="quiet"))
    if recipe.explanations:
        made.append(element("h4", "What drove each choice"))
        chances = {portion.food: portion.probability for portion in recipe.portions}
        for i, explanation in enumerate(recipe.explanations):
            opened = {"open": "open"} if i == 0 else {}
            chance = chances.get(explanation.food)
            made.append(element("details", *_explanation(explanation, chance), **opened))
    if recipe.substitutes or recipe.pairings:
        made.append(element("div", _substitutes(recipe), _pairings(recipe), class_="pair uneven"))
    return made


def _portions(recipe: Recipe, diet: str | None) -> Element:
    total = recipe.total_grams
    limit = max(max(portion.grams, portion.high_grams) for portion in recipe.portions)
    found = {finding.food: finding for finding in recipe.findings}
    rows = []
    for portion in recipe.portions:
        row = _portion_cells(portion, total, limit)
        rows.append(row if diet is None else [*row, _finding(found[portion.food])])
    header = ["Food", "", "Amount", f"80{_SPACE}% interval", "Share", "Probability when chosen"]
    if diet is not None:
        header.append(f"Rule: {diet}")
    caption = (
        f"{len(rows)} foods, {grams_text(total)} in all. "
        f"Bar: the model's amount; line: its 80{_SPACE}% interval."
    )
    return table(caption, header, rows, numeric=(2, 3, 4, 5), class_="portions")


def _portion_cells(portion: Portion, total: float, limit: float) -> list[Child]:
    low, high = portion.low_grams, portion.high_grams
    chance = portion.probability
    return [
        portion.food,
        drawing(plots.inline_gram_bar(portion.grams, low=low, high=high, limit=limit)),
        grams_text(portion.grams),
        f"{grams_text(low).removesuffix(f'{_SPACE}g')}{_INTERVAL}{grams_text(high)}",
        percent_text(portion.grams / total),
        "required" if chance is None else percent_text(chance),
    ]


def _finding(finding: Finding) -> Element:
    because = f": {', '.join(finding.because)}" if finding.because else ""
    return element("span", finding.status + because, class_=finding.status)


def diet_sentence(findings: Sequence[Finding], diet: str) -> str:
    """What the rule of a diet found in a recipe's foods, and what it did not look at."""
    count = Counter(finding.status for finding in findings)
    doubtful = ", ".join(f.food for f in findings if f.status == "unknown")
    excluded = ", ".join(f.food for f in findings if f.status == "contains")
    return (
        f"Checked food by food against the rule \N{LEFT SINGLE QUOTATION MARK}{diet}"
        f"\N{RIGHT SINGLE QUOTATION MARK}: {count['free']} free of what it excludes, "
        f"{count['unknown']} unknown{f' ({doubtful})' if doubtful else ''}, "
        f"{count['contains']} containing it{f' ({excluded})' if excluded else ''}. "
        "Unknown is not cleared; brands and traces were not checked."
    )


def _explanation(explanation: Explanation, chance: float | None) -> list[Element]:
    summary = element("summary", element("strong", explanation.food))
    if chance is not None:
        summary.append(element("span", f" \N{MIDDLE DOT} {percent_text(chance)}"))
    strongest = [
        max(parts, key=lambda part: abs(part.value))
        for parts in (explanation.ingredients, explanation.compounds)
        if parts
    ]
    if strongest:
        named = ", ".join(f"{part.name} {signed_text(part.value)}" for part in strongest)
        text = f" \N{MIDDLE DOT} strongest: {named}{_SPACE}{explanation.unit}"
        summary.append(element("span", text, class_="quiet"))
    note = (
        "Blue speaks for the choice, orange against it. All attributions together miss "
        f"{percent_text(explanation.completeness_error)} of what they explain "
        "(completeness error)."
    )
    tables = [
        _drivers("Ingredients already there", explanation.ingredients, explanation.unit),
        _drivers("Their compounds and nutrients", explanation.compounds, explanation.unit),
    ]
    return [summary, element("div", *tables, class_="pair"), element("p", note, class_="quiet")]


def _drivers(caption: str, parts: Sequence[Attribution], unit: str) -> Element | None:
    if not parts:
        return None
    limit = max(abs(part.value) for part in parts) or 1.0
    bars = [drawing(plots.inline_signed_bar(part.value, limit=limit)) for part in parts]
    rows = [
        [part.name, bar, signed_text(part.value)] for part, bar in zip(parts, bars, strict=True)
    ]
    header = ["Name", "", f"Attribution ({unit})"]
    return table(caption, header, rows, numeric=(2,), class_="drivers")


def _substitutes(recipe: Recipe) -> Element | None:
    if not recipe.substitutes:
        return None
    rows = [
        [row.food, row.replacement, signed_text(row.nats), row.change] for row in recipe.substitutes
    ]
    header = ["Instead of", "Take", "Log-probability (nats)", "What changes"]
    made = table(
        "What could replace a food, and how the recipe changes", header, rows, numeric=(2,)
    )
    return element("div", element("h4", "Substitutes"), made)


def _pairings(recipe: Recipe) -> Element | None:
    if not recipe.pairings:
        return None
    rows = [[row.food, row.partner, signed_text(row.nats)] for row in recipe.pairings]
    header = ["Food", "Partner", "Favoured by (nats)"]
    made = table("Partners that a food's molecules favour", header, rows, numeric=(2,))
    return element("div", element("h4", "Pairings"), made)


# Attention, metrics, training


def _attention(i: int, shown: AttentionMap) -> Element:
    described = (
        f"{shown.title}: heat map of {len(shown.row_labels)} by {len(shown.column_labels)} "
        f"attention weights, in per cent of each row. {_strongest(shown)}"
    )
    return element(
        "article",
        element("h3", shown.title),
        _figure(attention_figure(shown), f"attention-{i}", described, _strongest(shown)),
        class_="card",
    )


def _strongest(shown: AttentionMap) -> str:
    i, j = divmod(int(np.argmax(shown.weights)), len(shown.column_labels))
    return (
        f"Strongest: {shown.row_labels[i]} on {shown.column_labels[j]}, "
        f"{percent_text(float(shown.weights[i, j]))} of its row."
    )


def _metrics(i: int, shown: MetricTable) -> Element:
    header = ["Method", "n"]
    for column in shown.columns:
        better = {True: f"{_SPACE}\N{UPWARDS ARROW}", False: f"{_SPACE}\N{DOWNWARDS ARROW}"}
        arrow = "" if column.higher_is_better is None else better[column.higher_is_better]
        header.append(column.label + arrow)
    rows = [
        [element("span", row.method, class_="ours") if row.ours else row.method, f"{row.n:,}"]
        + [_score(row, column, shown.rows) for column in shown.columns]
        for row in shown.rows
    ]
    caption = f"Below each value its 95{_SPACE}% interval; bold: best of its column."
    described = f"{shown.title}: dots with intervals; the table below holds every number."
    return element(
        "article",
        element("h3", shown.title),
        element("p", shown.note, class_="quiet") if shown.note else None,
        _figure(metric_figure(shown), f"metrics-{i}", described, None, class_="whole"),
        table(caption, header, rows, numeric=range(1, len(header)), class_="metrics"),
        class_="card",
    )


def _score(row: MethodRow, column: MetricColumn, rows: Sequence[MethodRow]) -> Child:
    score = row.scores.get(column.key)
    if score is None:
        return _INTERVAL
    value = element("span", f"{score.mean:.{column.digits}f}")
    all_means = [r.scores[column.key].mean for r in rows if column.key in r.scores]
    choose = {True: max, False: min}.get(column.higher_is_better)  # pyright: ignore[reportArgumentType]
    if choose is not None and score.mean == choose(all_means):
        value.set("class", "best")
    if score.low is None or score.high is None:
        return value
    ends = f"{score.low:.{column.digits}f}{_INTERVAL}{score.high:.{column.digits}f}"
    return element("div", value, element("span", ends, class_="interval"))


def _training(i: int, run: TrainingRun) -> Element:
    lines = ", ".join(f"{name} {value:.3f}" for name, value in run.baselines.items())
    described = (
        f"{run.title}: on the left {run.loss_label} over steps, on the right {run.label} "
        f"beside the baselines as dashed lines: {lines or 'none'}."
    )
    figure = _figure(training_figure(run), f"training-{i}", described, None, class_="whole")
    return element("article", element("h3", run.title), figure, class_="card")


def _limits(limits: Sequence[str]) -> Element:
    return element("ul", *(element("li", text) for text in limits), class_="limits")


def _figure(
    figure: Figure, name: str, described: str, caption: str | None, *, class_: str = ""
) -> Element:
    svg = drawing(plots.to_svg(figure, name=name, description=described))
    if class_:
        svg.set("class", class_)
    return element("figure", svg, element("figcaption", caption) if caption else None)


# Numbers


def grams_text(grams: float) -> str:
    """Grams to a weighing's precision: whole from 10 g on, two digits below."""
    digits = 0 if grams >= 9.95 else 1 if grams >= 0.995 else 2
    return f"{grams:,.{digits}f}{_SPACE}g"


def percent_text(share: float) -> str:
    """A share in per cent: whole from 10 % on, two digits below."""
    percent = 100 * share
    if 0 < percent < 0.01:
        return f"<{_SPACE}0.01{_SPACE}%"
    digits = 0 if percent >= 9.95 else 1 if percent >= 0.995 else 2
    return f"{percent:.{digits}f}{_SPACE}%"


def signed_text(value: float) -> str:
    """A signed number with a true minus."""
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")

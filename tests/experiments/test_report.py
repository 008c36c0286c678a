import dataclasses
import html.parser
import re

import numpy as np
import pytest

from experiments.recipes.report import (
    diet_sentence,
    grams_text,
    percent_text,
    report_page,
    signed_text,
    write_plots,
    write_report,
)
from experiments.recipes.report_data import (
    AttentionMap,
    Attribution,
    Explanation,
    MethodRow,
    MetricColumn,
    MetricTable,
    Pairing,
    Pantry,
    Portion,
    Recipe,
    Report,
    Score,
    Substitute,
    TrainingRun,
)
from recipe_jax.diets import Finding

FOODS = ["flour", "butter", "sugar", "egg", "walnut", "baking powder", "vanilla extract"]
GRAMS = [252.4, 113.0, 151.2, 104.9, 60.3, 5.21, 4.3]
CHANCES = [None, None, None, 0.413, 0.087, 0.62, 0.298]


def portions(foods=FOODS, grams=GRAMS, chances=CHANCES):
    return [
        Portion(food=f, grams=g, low_grams=0.72 * g, high_grams=1.31 * g, probability=p)
        for f, g, p in zip(foods, grams, chances, strict=True)
    ]


def explanation(food, sign=1.0):
    names = ["flour", "butter", "sugar", "egg", "walnut"]
    values = [1.31, 0.62, -0.42, 0.11, -0.06]
    compounds = ["Lactose", "Total saturated fat", "Diacetyl", "Starch", "Vitamin C", "Linalool"]
    amounts = [0.74, 0.51, 0.33, -0.29, -0.12, 0.05]
    return Explanation(
        food=food,
        ingredients=[
            Attribution(name=n, value=sign * v)
            for n, v in zip(names, values, strict=True)
            if n != food
        ],
        compounds=[
            Attribution(name=n, value=sign * v) for n, v in zip(compounds, amounts, strict=True)
        ],
        completeness_error=0.0031,
    )


def attention(num_foods=7):
    weights = np.random.default_rng(0).dirichlet(np.full(num_foods, 0.4), size=num_foods)
    labels = FOODS[:num_foods]
    return AttentionMap(
        title="Last layer, mean of heads", weights=weights, row_labels=labels, column_labels=labels
    )


def metric_table():
    columns = [
        MetricColumn(key="recall_at_10", label="R@10", higher_is_better=True),
        MetricColumn(key="mrr", label="MRR", higher_is_better=True),
        MetricColumn(key="rank", label="median rank", higher_is_better=False, digits=1),
    ]
    values = {
        "this run": (0.641, 0.388, 5.0),
        "pretrained": (0.671, 0.421, 4.0),
        "k-nearest": (0.597, 0.346, 7.0),
        "EASE": (0.565, 0.322, 8.0),
        "popularity": (0.343, 0.171, 31.0),
    }
    rows = [
        MethodRow(
            method=method,
            n=6804,
            ours=method in ("this run", "pretrained"),
            scores={
                "recall_at_10": Score(mean=recall, low=recall - 0.011, high=recall + 0.012),
                "mrr": Score(mean=mrr, low=mrr - 0.009, high=mrr + 0.008),
                "rank": Score(mean=rank),
            },
        )
        for method, (recall, mrr, rank) in values.items()
    ]
    note = "One food of each test recipe is hidden; all others are ranked."
    return MetricTable(title="Completion", columns=columns, rows=rows, note=note)


def training_run():
    steps = np.arange(20, 1201, 20)
    noise = np.random.default_rng(1).normal(0, 0.03, len(steps))
    losses = 3.4 + 2.8 * np.exp(-steps / 180) + noise
    rows = [
        {"step": int(step), "split": "train", "loss": float(loss)}
        for step, loss in zip(steps, losses, strict=True)
    ]
    rows += [
        {"step": step, "split": "validation", "mrr": 0.37 * (1 - float(np.exp(-step / 250)))}
        for step in range(100, 1201, 100)
    ]
    baselines = {"k-nearest": 0.346, "EASE": 0.322, "naive Bayes": 0.29, "popularity": 0.162}
    return TrainingRun(
        title="Generator, 178 seconds on 2 cores",
        rows=rows,
        metric="mrr",
        label="validation MRR",
        baselines=baselines,
    )


def example_report(**changes):
    unknown = {"vanilla extract": ("alcohol",)}
    findings = [
        Finding(f, "unknown" if f in unknown else "free", unknown.get(f, ())) for f in FOODS
    ]
    cake = Recipe(
        portions=portions(),
        findings=findings,
        explanations=[explanation("egg"), explanation("walnut", -1.0), explanation("butter")],
        substitutes=[
            Substitute(food="butter", replacement="margarine", nats=-0.61, change="12 % less fat"),
            Substitute(food="walnut", replacement="pecan", nats=0.08, change="flavour stays near"),
        ],
        pairings=[
            Pairing(food="walnut", partner="maple syrup", nats=0.42),
            Pairing(food="butter", partner="cream", nats=0.37),
        ],
    )
    soup = Recipe(
        portions=portions(
            ["lentil", "onion", "carrot", "cumin", "olive oil"],
            [310.0, 141.0, 118.0, 3.4, 27.0],
            [None, 0.71, 0.44, 0.18, 0.33],
        ),
        explanations=[explanation("onion")],
    )
    values = dict(
        title="Recipes from molecules",
        data="Trained on 10,000 recipes of the user's own data folder; scored on 6,804 others.",
        pantries=[
            Pantry(
                name="A cake without alcohol",
                required=FOODS[:3],
                forbidden=["peanut"],
                diet="alcohol",
                recipes=[cake],
            ),
            Pantry(name="Lentil soup", required=["lentil"], recipes=[soup]),
        ],
        training=[training_run()],
        tables=[metric_table()],
        attention=[attention()],
        limits=["Amounts are proportions of a total that the user chose.", "One seed."],
        facts={"Recipes": "10,000", "Training": "178 s", "Device": "CPU, 2 cores", "Seed": "0"},
    )
    return Report(**{**values, **changes})


class Reader(html.parser.HTMLParser):
    """What a reader sees: texts, rows of tables, attributes that load something."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.rows, self.tags, self.sources = [], [], [], []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.sources += [v for k, v in attrs if k in ("src", "href", "xlink:href", "data")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data):
        self.texts.append(data)
        if self.in_cell:
            self.rows[-1][-1] += data.replace("\u00a0", " ")

    def row(self, name, width):
        return next(row for row in self.rows if row and row[0] == name and len(row) == width)


@pytest.fixture(scope="module")
def text():
    return report_page(example_report())


@pytest.fixture(scope="module")
def reader(text):
    return Reader(text)


def test_training_is_told_in_words_too(reader):
    told = [attrs.get("aria-label", "") for tag, attrs in reader.tags if tag == "svg"]
    for name, value in training_run().baselines.items():
        assert any(f"{name} {value:.3f}" in text for text in told)


def test_every_portion_shows_its_own_numbers(reader):
    total = sum(GRAMS)
    for food, grams, chance in zip(FOODS, GRAMS, CHANCES, strict=True):
        _, _, amount, interval, share, probability, _ = reader.row(food, 7)
        assert float(amount.removesuffix(" g")) == pytest.approx(grams, rel=0.02)
        low, high = interval.removesuffix(" g").split("\u2013")
        assert float(low) == pytest.approx(0.72 * grams, rel=0.02)
        assert float(high) == pytest.approx(1.31 * grams, rel=0.02)
        assert float(share.removesuffix(" %")) == pytest.approx(100 * grams / total, rel=0.06)
        if chance is None:
            assert probability == "required"
        else:
            assert float(probability.removesuffix(" %")) == pytest.approx(100 * chance, rel=0.02)


def test_shares_of_a_recipe_sum_to_the_whole(reader):
    shares = [float(reader.row(food, 7)[4].removesuffix(" %")) for food in FOODS]
    assert sum(shares) == pytest.approx(100, abs=0.5 * len(FOODS))
    assert any(f"{sum(GRAMS):.0f}\u00a0g in all" in text for text in reader.texts)


def test_drivers_scores_substitutes_and_pairings_show_their_numbers(reader):
    assert reader.row("Lactose", 3)[2] == "+0.74"
    assert reader.row("Starch", 3)[2] == "\u22120.29"
    assert reader.row("butter", 4) == ["butter", "margarine", "\u22120.61", "12 % less fat"]
    assert reader.row("walnut", 3)[1:] == ["", "\u22120.06"]
    assert ["walnut", "maple syrup", "+0.42"] in reader.rows
    ours = reader.row("this run", 5)
    assert ours == ["this run", "6,804", "0.6410.630\u20130.653", "0.3880.379\u20130.396", "5.0"]


def test_the_best_of_a_column_is_marked_by_its_direction(text):
    best = re.findall(r'<span class="best">([^<]*)</span>', text)
    assert best == ["0.671", "0.421", "4.0"]
    coverage = MetricColumn(key="mrr", label="coverage", higher_is_better=None)
    rows = [MethodRow(method=f"m{v}", n=3, scores={"mrr": Score(mean=v)}) for v in (0.7, 0.9)]
    plain = MetricTable(title="t", columns=[coverage], rows=rows)
    assert 'class="best"' not in report_page(example_report(tables=[plain], training=[]))


def test_the_page_needs_nothing_else(text, reader):
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert all(source.startswith("#") for source in reader.sources)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in reader.tags}
    ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {source[1:] for source in reader.sources} <= set(ids)


HOSTILE = '<script>alert(1)</script> & "quoted" $x_1$'


def test_no_text_becomes_markup(text):
    recipe = Recipe(
        portions=portions([HOSTILE], [10.0], [0.5]),
        findings=[Finding(HOSTILE, "unknown", ())],
        explanations=[
            Explanation(
                food=HOSTILE,
                ingredients=[Attribution(name=HOSTILE, value=1.0)],
                compounds=[Attribution(name=HOSTILE, value=-1.0)],
                completeness_error=0.0,
            )
        ],
        substitutes=[Substitute(food=HOSTILE, replacement=HOSTILE, nats=0.1, change=HOSTILE)],
        pairings=[Pairing(food=HOSTILE, partner=HOSTILE, nats=0.1)],
    )
    pantry = Pantry(
        name=HOSTILE, required=[HOSTILE], forbidden=["x" + HOSTILE], diet="vegan", recipes=[recipe]
    )
    shown = AttentionMap(
        title=HOSTILE, weights=np.ones((1, 1)), row_labels=[HOSTILE], column_labels=[HOSTILE]
    )
    hostile = Report(
        title=HOSTILE,
        data=HOSTILE,
        pantries=[pantry],
        training=[dataclasses.replace(training_run(), title=HOSTILE, baselines={HOSTILE: 0.3})],
        tables=[
            MetricTable(
                title=HOSTILE,
                note=HOSTILE,
                columns=[MetricColumn(key="a", label=HOSTILE, higher_is_better=True)],
                rows=[MethodRow(method=HOSTILE, n=1, scores={"a": Score(mean=0.5)})],
            )
        ],
        attention=[shown],
        limits=[HOSTILE],
        facts={HOSTILE: HOSTILE},
    )
    made = report_page(hostile)
    assert "<script" not in made
    assert {tag for tag, _ in Reader(made).tags} <= {tag for tag, _ in Reader(text).tags}
    assert "".join(Reader(made).texts).count(HOSTILE) >= 20


def test_pictures_and_tables_speak_to_those_who_cannot_see(reader):
    drawings = [attrs for tag, attrs in reader.tags if tag == "svg"]
    assert all(d.get("aria-hidden") == "true" or d.get("aria-label") for d in drawings)
    assert any("vanilla extract on butter, 67" in d.get("aria-label", "") for d in drawings)
    heads = [attrs for tag, attrs in reader.tags if tag == "th"]
    assert heads and all(attrs["scope"] in ("col", "row") for attrs in heads)
    count = [tag for tag, _ in reader.tags]
    assert count.count("caption") == count.count("table") > 5


def test_light_and_dark_pages_share_one_drawing(text):
    assert "prefers-color-scheme: dark" in text
    assert re.search(r'style="fill: var\(--plot-accent, #', text)


def test_a_diet_is_told_as_what_was_checked(text):
    findings = [
        Finding("egg", "contains", ("eggs",)),
        Finding("bread", "unknown", ("dairy",)),
        Finding("rice", "free", ()),
    ]
    sentence = diet_sentence(findings, "vegan")
    assert "1 free of what it excludes" in sentence
    assert "1 unknown (bread)" in sentence
    assert "1 containing it (egg)" in sentence
    assert "not cleared" in sentence
    assert "safe" not in text.lower()


@pytest.mark.parametrize(
    ("grams", "shown"),
    [(1240.2, "1,240 g"), (9.96, "10 g"), (9.94, "9.9 g"), (0.996, "1.0 g"), (0.25, "0.25 g")],
)
def test_grams_are_shown_as_precisely_as_they_are_weighed(grams, shown):
    assert grams_text(grams).replace("\u00a0", " ") == shown


def test_percents_and_signs():
    shown = [percent_text(share).replace("\u00a0", " ") for share in (0.5, 0.0312, 0, 2e-5, 1)]
    assert shown == ["50 %", "3.1 %", "0.00 %", "< 0.01 %", "100 %"]
    assert [signed_text(v) for v in (1.234, -0.5)] == ["+1.23", "\u22120.50"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: portions(["butter"], [float("nan")], [None]), "^grams of 'butter' is nan"),
        (lambda: portions(["butter"], [-1.0], [None]), "^grams of 'butter' is -1.0"),
        (lambda: portions(["butter"], [1.0], [1.2]), "^probability of 'butter' is 1.2"),
        (lambda: Portion(food="egg", grams=1.0, low_grams=2.0, high_grams=1.0), "low_grams=2.0"),
        (lambda: Recipe(portions=portions(["egg"], [0.0], [None])), "portions weigh 0.0 g"),
        (lambda: Attribution(name="Starch", value=float("inf")), "'Starch' is inf"),
        (lambda: Score(mean=float("nan")), "score mean is nan"),
        (
            lambda: Pantry(name="p", required=["milk"], recipes=[Recipe(portions=portions())]),
            r"'p' must hold \['milk'\]",
        ),
        (
            lambda: Pantry(
                name="p", required=[], diet="vegan", recipes=[Recipe(portions=portions())]
            ),
            "diet 'vegan' needs findings",
        ),
        (
            lambda: Pantry(
                name="p", required=[], forbidden=["egg"], recipes=[Recipe(portions=portions())]
            ),
            r"must not hold \['egg'\]",
        ),
        (
            lambda: Recipe(portions=portions(), findings=[Finding("flour", "free", ())]),
            "findings must cover every food, lack baking powder, butter",
        ),
    ],
)
def test_numbers_that_cannot_be_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    small = example_report(tables=[], training=[], attention=[])
    path = tmp_path / "new" / "report.html"
    write_report(path, small)
    assert path.read_text(encoding="utf-8") == report_page(small)
    before = path.read_bytes()

    def full(self, data):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(path, small)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_pictures_are_written_under_their_names(tmp_path):
    lentils = example_report().pantries[1:]
    small = example_report(pantries=lentils, tables=[], training=[], attention=[])
    paths = write_plots(tmp_path / "plots", small)
    assert [path.name for path in paths] == [
        "recipe_1_grams.png",
        "recipe_1_ingredients.png",
        "recipe_1_compounds.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_sections_without_content_are_left_out():
    made = Reader(report_page(example_report(tables=[], training=[], attention=[], limits=[])))
    assert [attrs["id"] for tag, attrs in made.tags if tag == "section"] == ["recipes"]
    assert made.sources == ["#recipes"]

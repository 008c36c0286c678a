"""Items that no training saw: who recommends them, and what a fallback on vectors makes of it.

python -m experiments.semantic_ids new_items --run runs/generative --vectors runs/codes/vectors.npz

`RUN` is of `train` with `--new-items`, on codes of `quantize` with the same: one item in ten is in
no history that was learned from, while its codes are in the index.  Queries, the last item of each
user left out, are told apart by whether that item is new; all items are ranked in either case.  The
decay of retrieval and the share of places that the fallback reserves are chosen on validation.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64
from rich.console import Console
from rich.table import Table

from experiments.commands import check_least
from experiments.record import command_line, make_record, write_record
from experiments.semantic_ids.baselines import fit_ease, fit_popularity
from experiments.semantic_ids.choices import read_choices
from experiments.semantic_ids.choose import DECAYS
from experiments.semantic_ids.datasets import Dataset, read_dataset, said
from experiments.semantic_ids.embedding_retrieval import (
    EmbeddingRetrieval,
    check_new_items,
    fit_embedding_retrieval,
    with_fallback,
)
from experiments.semantic_ids.generative_task import exact_scorer
from experiments.semantic_ids.protocol import Scorer, item_bits, ranking_metrics, target_ranks
from experiments.semantic_ids.trained import Recommender, check_items, load_recommender
from recipe_jax.data.array_files import read_vectors
from recipe_jax.data.interactions import Queries, without_items
from recipe_jax.metrics import ndcg_at_k, recall_at_k
from recipe_jax.reserved_places import top_items
from recipe_jax.semantic_ids import SemanticIds

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Of the places, for new items."""

TOP = 10
"""Places of a list of recommendations."""

USERS_AT_ONCE = 512

Ranks = Float64[np.ndarray, "u"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is asked about new items.

    Attributes:
        run: the run folder of a generative model of `train --new-items`.
        vectors: of the items: the vectors.npz of the `quantize --new-items` of its codes.
        data: `beauty`, or the path of a file of histories.
        data_seed: of the items' order.
        split: which part is asked; look at test once.
        runs: run folders of other models of `train --new-items`, to stand beside it.
        users: most users of validation to choose by, a random sample.
        exact_users: of each kind of query, users for whom every item is read whole: what the model
            knows and its beams do not find.
        choices: the record of `choose`, for EASE; that of the data among the project's records if
            not given.
        record: write the results to this file.
    """

    run: Path
    vectors: Path
    data: str = "beauty"
    data_seed: int = 0
    split: Literal["validation", "test"] = "validation"
    runs: tuple[Path, ...] = ()
    users: int = 5000
    exact_users: int = 100
    choices: Path | None = None
    record: Path | None = None

    def __post_init__(self) -> None:
        check_least(self, data_seed=0, users=2, exact_users=2)


class Asked(NamedTuple):
    """Queries, and which items are new.

    Attributes:
        queries: what is asked.
        is_new: whether each item is.
    """

    queries: Queries
    is_new: Bool[np.ndarray, "n"]

    @property
    def has_new_target(self) -> Bool[np.ndarray, "u"]:
        """Whether each query asks for a new item."""
        return self.is_new[self.queries.targets]


def run(flags: Flags) -> dict[str, Any]:
    """Choose on validation, ask the split, print, write the record."""
    dataset = read_dataset(flags.data, seed=flags.data_seed)
    recommender = load_new(flags.run, dataset)
    ids = recommender.ids
    if ids is None:
        raise ValueError(f"{flags.run}: holds no generative model")
    vectors = read_vectors(flags.vectors, dataset.item_ids)
    split, is_new = dataset.split, recommender.is_new
    asked = Asked(split.test if flags.split == "test" else split.validation, is_new)
    choosing = Asked(sample(split.validation, flags.users, seed=1), is_new)
    check_asked(choosing, "validation")
    check_asked(asked, flags.split)
    others = fit_others(flags, dataset, is_new)
    retrieval, decays = choose_decay(vectors, choosing)
    tried = shares_of(recommender.scorer(), retrieval, choosing)[0]
    chosen = choose_share(tried)
    n = len(dataset.item_ids)
    systems = {
        name: by_target(target_ranks(score, asked.queries, num_items=n), asked)
        for name, score in {**others, "embedding_retrieval": retrieval.score}.items()
    }
    shares, reach = shares_of(recommender.scorer(), retrieval, asked)
    systems["generative"] = shares[f"{0.0:g}"]
    systems["generative_with_fallback"] = shares[f"{chosen:g}"]
    rows = {f"generative, {share} for new items": found for share, found in shares.items()}
    print_systems(f"{dataset.name}, {flags.split}", {**systems, **rows})
    headline = {
        "data": dataset.name,
        "split": flags.split,
        "num_items": n,
        "num_new_items": int(is_new.sum()),
        "chosen_on_validation": {
            "n": len(choosing.queries.targets),
            "decay": retrieval.decay,
            "share": chosen,
            "ndcg_at_10_of_decays": decays,
            "shares": tried,
        },
        "systems": systems,
        "shares": shares,
        "items_in_somebodys_top_10": reach,
        "without_beams": beam_and_exact(recommender, ids, asked, flags.exact_users),
    }
    if flags.record is not None:
        told = dataclasses.replace(flags, data=said(flags.data))
        command = command_line("experiments.semantic_ids new_items", told, always=("data",))
        write_record(flags.record, make_record(command, **headline))
    return headline


def load_new(run: Path, dataset: Dataset) -> Recommender:
    """A model that never saw the new items of the dataset.

    Raises:
        ValueError: a model of other items, one that saw them all, or one that learned the
            validation items, on which is chosen here.
        ModelFolderError: no model there.
    """
    recommender = load_recommender(run)
    check_items(recommender, dataset, run)
    try:
        check_new_items(recommender.is_new)
    except ValueError as error:
        raise ValueError(f"{run}: {error}") from error
    if recommender.learned_validation:
        raise ValueError(f"{run}: the model learned the validation items, on which is chosen here")
    return recommender


def check_asked(asked: Asked, part: str) -> None:
    """Refuse queries of which nothing can be said by kinds.

    Raises:
        ValueError: fewer than two of a kind.
    """
    of_new = asked.has_new_target
    for kind, count in (("a new", of_new.sum()), ("no new", (~of_new).sum())):
        if count < 2:
            raise ValueError(
                f"{count} of {len(of_new)} queries of {part} ask for {kind} item, must be at "
                "least 2: ask more --users"
            )


def fit_others(flags: Flags, dataset: Dataset, is_new: Bool[np.ndarray, "n"]) -> dict[str, Scorer]:
    """What stands beside the generative model, of the same histories without new items."""
    choices, n = read_choices(Path(flags.data).name, flags.choices), len(dataset.item_ids)
    histories = without_items(dataset.split.train, is_new)
    ease = fit_ease(histories, num_items=n, penalty=choices.ease_penalty, decay=choices.ease_decay)
    found: dict[str, Scorer] = {
        "popularity": fit_popularity(histories, num_items=n).score,
        "ease": ease.score,
    }
    models = [load_new(run, dataset) for run in flags.runs]
    return found | {model.model_type: model.scorer() for model in models}


def sample(queries: Queries, count: int, *, seed: int) -> Queries:
    """So many random queries, or all of them."""
    rows = np.random.default_rng(seed).permutation(len(queries.targets))[:count]
    return queries.select(np.sort(rows))


def choose_decay(vectors: np.ndarray, asked: Asked) -> tuple[EmbeddingRetrieval, dict[str, float]]:
    """Retrieval with the decay of the best NDCG at 10, and that of each."""
    fitted = fit_embedding_retrieval(vectors)
    reached: dict[float, float] = {}
    for decay in DECAYS:
        score = dataclasses.replace(fitted, decay=decay).score
        ranks = target_ranks(score, asked.queries, num_items=len(asked.is_new))
        reached[decay] = float(ndcg_at_k(ranks, TOP).mean())
    best = max(DECAYS, key=lambda decay: reached[decay])
    return dataclasses.replace(fitted, decay=best), {f"{d:g}": x for d, x in reached.items()}


def choose_share(tried: Mapping[str, Mapping[str, Any]]) -> float:
    """The least share of the best recall at 10 over all queries, whatever they ask for."""
    return max(SHARES, key=lambda share: (tried[f"{share:g}"]["all"]["recall_at_10"], -share))


def shares_of(
    main: Scorer, retrieval: EmbeddingRetrieval, asked: Asked
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, float]]]:
    """For every share: metrics by target, and the part of items that anybody is shown at all.

    Both scorers are asked once, and what they say is mixed for each share.
    """
    n, queries = len(asked.is_new), asked.queries
    ranks: dict[float, list[Ranks]] = {share: [] for share in SHARES}
    shown = {share: np.zeros(n, bool) for share in SHARES}
    for start in range(0, len(queries.targets), USERS_AT_ONCE):
        rows = np.arange(start, min(start + USERS_AT_ONCE, len(queries.targets)))
        block = queries.select(rows)
        given, own = main(block.histories), retrieval.score(block.histories)
        unknown = ~item_bits(block.histories, n)
        for share in SHARES:
            score = with_fallback(
                lambda _, given=given: given,
                lambda _, own=own: own,
                asked.is_new,
                share=share,
                num_places=TOP,
            )
            mixed = score(block.histories)
            ranks[share].append(target_ranks(lambda _, mixed=mixed: mixed, block, num_items=n))
            top = top_items(mixed, unknown, TOP)
            shown[share][top[top >= 0]] = True
    found = {f"{s:g}": by_target(np.concatenate(of), asked) for s, of in ranks.items()}
    reach = {
        f"{share:g}": {
            "new": float(of[asked.is_new].mean()),
            "old": float(of[~asked.is_new].mean()),
        }
        for share, of in shown.items()
    }
    return found, reach


def by_target(ranks: Ranks, asked: Asked) -> dict[str, Any]:
    """The protocol's metrics of queries for new items, for others, and of all."""
    of_new = asked.has_new_target
    return {
        "new_target": ranking_metrics(ranks[of_new]),
        "old_target": ranking_metrics(ranks[~of_new]),
        "all": ranking_metrics(ranks),
    }


def beam_and_exact(
    recommender: Recommender, ids: SemanticIds, asked: Asked, count: int
) -> dict[str, Any]:
    """The same queries by beams and with every item read: of new targets, and of others."""
    n, found = len(asked.is_new), {}
    exact = exact_scorer(recommender.fn, recommender.params, ids)
    for name, kind in (("new_target", True), ("old_target", False)):
        rows = np.flatnonzero(asked.has_new_target == kind)
        queries = sample(asked.queries.select(rows), count, seed=2)
        beams = target_ranks(recommender.scorer(), queries, num_items=n)
        whole = target_ranks(exact, queries, num_items=n)
        found[name] = {
            "n": len(whole),
            "recall_at_10_by_beams": float(recall_at_k(beams, TOP).mean()),
            "recall_at_10": float(recall_at_k(whole, TOP).mean()),
            "recall_at_100": float(recall_at_k(whole, 100).mean()),
            "median_rank": float(np.median(whole)),
        }
    return found


def print_systems(title: str, systems: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """A table on stderr: recall at 5 and 10 of each system and kind of query."""
    table = Table(title=title)
    table.add_column("")
    kinds = ("new_target", "old_target", "all")
    for kind in kinds:
        n = next(iter(systems.values()))[kind]["n"]
        table.add_column(f"{kind.replace('_', ' ')} (n = {n})", justify="right")
    for name, found in systems.items():
        cells = [
            f"{found[kind]['recall_at_5']:.4f} / {found[kind]['recall_at_10']:.4f}"
            for kind in kinds
        ]
        table.add_row(name, *cells)
    Console(stderr=True, width=140).print(table)

"""Fit a quantizer to the vectors of a catalogue and give every item its codes.

python -m experiments.semantic_ids quantize --method residual-kmeans --run runs/codes

`RUN` then holds `quantizer/` (a model folder), `codes.npz` (`ids`, `codes`, `num_codes` of each
level, and `nearest`: what the quantizer alone says), `metrics.jsonl` with statistics of the whole
catalogue after every epoch, `plots/` and `record.json`.  The same command on the same folder
resumes.  The last line on stdout is one JSON object.
"""

import dataclasses
import io
import sys
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int32

from experiments.commands import check_least, check_seed
from experiments.record import command_line, make_record, place_of, write_record
from experiments.semantic_ids.catalogue_vectors import (
    ItemVectors,
    item_vectors,
    read_items,
    vectors_alone,
)
from recipe_jax import plots
from recipe_jax.data.files import replace_file
from recipe_jax.huggingface import to_json
from recipe_jax.models.residual_codebooks import ResidualCodebooksConfig
from recipe_jax.models.rq_vae import RqVaeConfig
from recipe_jax.quantizer_plots import code_tree, code_usage
from recipe_jax.quantizers.distinct_codes import encode_distinct
from recipe_jax.quantizers.fitting import catalogue_metrics, fit_residual_kmeans, fit_rq_vae
from recipe_jax.quantizers.quantizer import ModelQuantizer, ScalingName
from recipe_jax.quantizers.quantizer_folder import save_quantizer
from recipe_jax.quantizers.rq_vae_training import GradientName, RqVaeTraining
from recipe_jax.quantizers.stability import prefix_agreement
from recipe_jax.quantizers.statistics import (
    code_counts,
    code_statistics,
    named_statistics,
    reconstruction_error,
)
from recipe_jax.training.run_folder import RunFolder
from recipe_jax.training.tracker import MetricsFile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What defines a quantizer.

    Attributes:
        catalogue: beauty, recipes, or recipe-titles and pantrypilot, which search asks of; or a
            table of one's own: .jsonl, plain or compressed, or .parquet; none takes --vectors
            alone, whose ids, or rows, are then the items.
        id_field: of a table of one's own: what tells items apart.
        text_fields: of a table of one's own: what is known of an item in words.
        vectors: an .npy or .npz file with a vector for each item, in place of those of texts.
        encoder: the Hugging Face folder of a sentence encoder; TF-IDF and an SVD if not given.
        dim: width of vectors that TF-IDF and an SVD make.
        data_seed: of the items' order.
        new_items: one item in ten is new: everything is fitted to the others, and its codes leave
            theirs as they are; the vectors are kept in RUN/vectors.npz.
        method: residual-kmeans clusters vectors, rq-vae learns latents to quantize.
        run: the run folder; the same command on the same folder resumes.
        num_levels: codes of an item.
        num_codes: codewords of each level.
        assignment: distinct gives items that would share all codes different last ones; nearest
            leaves them.
        scaling: of the vectors: centre, or every column to variance 1.
        kmeans_iterations: most iterations of each level.
        latent_dim: of an RQ-VAE, width of what is quantized.
        hidden_dims: of an RQ-VAE, widths of the encoder's hidden layers.
        epochs: of an RQ-VAE, passes over the catalogue.
        batch_size: of an RQ-VAE, items per step.
        learning_rate: of an RQ-VAE, peak of the schedule.
        gradient: of an RQ-VAE, how the reconstruction reaches the encoder.
        codebook: of an RQ-VAE, running means or gradient descent.
        minutes: of an RQ-VAE, stop after this many minutes, earlier attempts included.
        seed: of everything random.
        seeds: quantizers of so many seeds, the first of them kept, to see what they agree on.
        record: write the record to this file as well.
        progress: show the progress bar.
    """

    catalogue: str = "beauty"
    id_field: str = "id"
    text_fields: tuple[str, ...] = ("title",)
    vectors: Path | None = None
    encoder: Path | None = None
    dim: int = 128
    data_seed: int = 0
    new_items: bool = False
    method: Literal["rq-vae", "residual-kmeans"] = "rq-vae"
    run: Path = Path("runs/codes")
    num_levels: int = 3
    num_codes: int = 256
    assignment: Literal["distinct", "nearest"] = "distinct"
    scaling: ScalingName = "columns"
    kmeans_iterations: int = 50
    latent_dim: int = 32
    hidden_dims: tuple[int, ...] = (512, 256, 128)
    epochs: int = 200
    batch_size: int = 1024
    learning_rate: float = 1e-3
    gradient: GradientName = "straight_through"
    codebook: Literal["ema", "loss"] = "ema"
    minutes: float | None = None
    seed: int = 0
    seeds: int = 1
    record: Path | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        check_least(self, dim=1, num_levels=1, num_codes=1, epochs=1, batch_size=1, seeds=1)
        check_least(self, kmeans_iterations=1, latent_dim=1)
        check_seed(self.seed)
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"--minutes {self.minutes} must be above 0")

    @property
    def source(self) -> str:
        """What the items are of, for people."""
        if self.catalogue == "none" and self.vectors is not None:
            return self.vectors.name
        return self.catalogue


class Fitted(NamedTuple):
    """A quantizer and the codes of the catalogue.

    Attributes:
        quantizer: what was fitted.
        nearest: the codes that it gives by itself.
        codes: those that items have.
        timing: seconds and rates.
    """

    quantizer: ModelQuantizer
    nearest: Int32[np.ndarray, "n q"]
    codes: Int32[np.ndarray, "n q"]
    timing: dict[str, float]


def run(flags: Flags) -> dict[str, Any]:
    """Fit, give codes, and write everything to the run folder."""
    items = read_vectors_of(flags)
    n, width = items.vectors.shape
    new = f", {int(items.is_new.sum())} of them new" if flags.new_items else ""
    print(f"data: {n} items of {flags.source}{new}, vectors {width} wide", file=sys.stderr)
    runs = [
        fit_one(flags, items, seed, flags.run if seed == flags.seed else flags.run / f"seed-{seed}")
        for seed in range(flags.seed, flags.seed + flags.seeds)
    ]
    fitted = runs[0]
    headline = summary(flags, items, fitted)
    if len(runs) > 1:
        agreement = prefix_agreement([other.nearest for other in runs])
        headline["seeds"] = len(runs)
        headline["seed_agreement"] = agreement.round(4).tolist()
        headline["of_seeds"] = [statistics_of(items, other) for other in runs]
    write_results(flags, items, fitted, headline)
    return headline


def read_vectors_of(flags: Flags) -> ItemVectors:
    """The items that the flags name, and their vectors.

    Raises:
        DataError: a file that breaks a rule.
    """
    if flags.catalogue == "none" and flags.vectors is not None:
        return vectors_alone(flags.vectors, seed=flags.data_seed, split=flags.new_items)
    items = read_items(flags.catalogue, id_field=flags.id_field, text_fields=flags.text_fields)
    return item_vectors(
        items,
        vectors=flags.vectors,
        encoder=flags.encoder,
        dim=flags.dim,
        seed=flags.data_seed,
        split=flags.new_items,
    )


def fit_one(flags: Flags, items: ItemVectors, seed: int, folder: Path) -> Fitted:
    """One quantizer of one seed, in a run folder of its own, fitted to the items that are known."""
    if flags.method == "residual-kmeans":
        quantizer, timing = run_kmeans(flags, items.known, seed, folder)
    else:
        quantizer, timing = run_rq_vae(flags, items.known, seed, folder)
    nearest = quantizer.encode(items.vectors)
    distinct = flags.assignment == "distinct"
    codes = distinct_codes(quantizer, items) if distinct else nearest
    return Fitted(quantizer, nearest, codes, timing)


def distinct_codes(quantizer: ModelQuantizer, items: ItemVectors) -> Int32[np.ndarray, "n q"]:
    """Codes that no two items share: first of those that are known, then of the new ones."""
    codes = np.empty((len(items.ids), quantizer.num_levels), np.int32)
    codes[~items.is_new] = encode_distinct(quantizer, items.known.vectors)
    codes[items.is_new] = encode_distinct(
        quantizer, items.vectors[items.is_new], taken=codes[~items.is_new]
    )
    return codes


def run_kmeans(
    flags: Flags, items: ItemVectors, seed: int, folder: Path
) -> tuple[ModelQuantizer, dict[str, float]]:
    """Residual k-means; a run of one epoch."""
    cfg = ResidualCodebooksConfig(
        in_dim=items.vectors.shape[1], num_levels=flags.num_levels, num_codes=flags.num_codes
    )
    place = RunFolder(folder)
    place.claim({**described(flags), "seed": seed, "items": items.fingerprint})
    started = time.perf_counter()
    quantizer = fit_residual_kmeans(
        items.vectors,
        cfg,
        seed=seed,
        scaling=flags.scaling,
        num_iterations=flags.kmeans_iterations,
    )
    seconds = time.perf_counter() - started
    metrics = catalogue_metrics(quantizer, items.vectors)
    MetricsFile(place.metrics, 0).append({"step": 1, "split": "catalogue", **metrics})
    return quantizer, {"wall_seconds": round(seconds, 3)}


def run_rq_vae(
    flags: Flags, items: ItemVectors, seed: int, folder: Path
) -> tuple[ModelQuantizer, dict[str, float]]:
    """An RQ-VAE, trained or trained on."""
    cfg = RqVaeConfig(
        in_dim=items.vectors.shape[1],
        latent_dim=flags.latent_dim,
        hidden_dims=flags.hidden_dims,
        num_levels=flags.num_levels,
        num_codes=flags.num_codes,
    )
    training = RqVaeTraining(
        num_epochs=flags.epochs,
        batch_size=flags.batch_size,
        learning_rate=flags.learning_rate,
        gradient=flags.gradient,
        codebook=flags.codebook,
        reset_epochs=flags.epochs * 3 // 4,
        kmeans_iterations=flags.kmeans_iterations,
    )
    found = fit_rq_vae(
        items.vectors,
        cfg,
        training,
        run=folder,
        seed=seed,
        scaling=flags.scaling,
        config={"method": flags.method, "items": items.fingerprint},
        max_seconds=None if flags.minutes is None else 60 * flags.minutes,
        show_progress=flags.progress,
    )
    return found.quantizer, {"step": found.result.step, **found.result.timing}


def described(flags: Flags) -> dict[str, Any]:
    """The flags that change a quantizer, as JSON can hold them."""
    free = ("run", "record", "progress", "vectors", "encoder", "seed", "seeds", "assignment")
    free += ("new_items",)  # what is fitted to has a fingerprint
    return {name: value for name, value in to_json(flags).items() if name not in free}


def statistics_of(items: ItemVectors, fitted: Fitted) -> dict[str, Any]:
    """Of the codes that items have, beside what the quantizer alone would give."""
    quantizer, num_codes = fitted.quantizer, fitted.quantizer.num_codes
    nearest = code_statistics(fitted.nearest, num_codes)
    statistics = named_statistics(code_statistics(fitted.codes, num_codes))
    changed = (fitted.codes != fitted.nearest).any(axis=1)
    return {
        **statistics,
        "reconstruction_error": reconstruction_error(items.vectors, quantizer.decode(fitted.codes)),
        "nearest_collision_rate": nearest.collision_rate,
        "nearest_reconstruction_error": reconstruction_error(
            items.vectors, quantizer.decode(fitted.nearest)
        ),
        "items_not_nearest": float(changed.mean()),
    }


def statistics_of_new(items: ItemVectors, fitted: Fitted) -> dict[str, Any]:
    """What the quantizer makes of items that it never saw, beside those that it did."""
    found: dict[str, Any] = {"n": int(items.is_new.sum())}
    for name, rows in (("", items.is_new), ("_of_known", ~items.is_new)):
        decoded = fitted.quantizer.decode(fitted.nearest[rows])
        found[f"nearest_reconstruction_error{name}"] = reconstruction_error(
            items.vectors[rows], decoded
        )
        found[f"not_nearest{name}"] = float(
            (fitted.codes != fitted.nearest)[rows].any(axis=1).mean()
        )
    return found


def summary(flags: Flags, items: ItemVectors, fitted: Fitted) -> dict[str, Any]:
    """Headline metrics, also printed as a table on stderr."""
    statistics = statistics_of(items, fitted)
    for name, value in statistics.items():
        print(f"{name:<30} {value:10.4f}", file=sys.stderr)
    distinct_rows = len(np.unique(items.vectors, axis=0))
    return {
        "method": flags.method,
        "assignment": flags.assignment,
        "n": len(items.ids),
        **statistics,
        **({"new_items": statistics_of_new(items, fitted)} if flags.new_items else {}),
        "distinct_vectors": distinct_rows,
        **fitted.timing,
    }


def write_results(
    flags: Flags, items: ItemVectors, fitted: Fitted, headline: dict[str, Any]
) -> None:
    """The quantizer, the codes, pictures and the record."""
    save_quantizer(flags.run / "quantizer", fitted.quantizer, card=model_card(flags, headline))
    write_arrays(
        flags.run / "codes.npz",
        ids=np.array(items.ids),
        codes=fitted.codes,
        nearest=fitted.nearest,
        num_codes=np.full(fitted.codes.shape[1], fitted.quantizer.num_codes),
        is_new=items.is_new,
    )
    if flags.new_items:
        write_arrays(flags.run / "vectors.npz", ids=np.array(items.ids), vectors=items.vectors)
    pictures = flags.run / "plots"
    pictures.mkdir(exist_ok=True)
    usage = code_usage(code_counts(fitted.codes, fitted.quantizer.num_codes))
    replace_file(pictures / "code_usage.png", plots.to_png(usage))
    replace_file(pictures / "code_tree.png", plots.to_png(code_tree(fitted.codes)))
    place = None if flags.vectors is None else place_of(flags.vectors)
    record = make_record(
        command_line("experiments.semantic_ids quantize", flags),
        config={
            **described(flags),
            "assignment": flags.assignment,
            "vectors": place,
            "new_items": flags.new_items,
        },
        seed=flags.seed,
        items=items.fingerprint,
        **headline,
    )
    for path in (flags.run / "record.json", flags.record):
        if path is not None:
            write_record(path, record)


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """An .npz file, whole or not at all."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
    replace_file(path, content.getvalue())


def model_card(flags: Flags, headline: dict[str, Any]) -> str:
    """What the quantizer is and how far to trust it, in Markdown."""
    usage = ", ".join(f"{headline[f'usage_{level}']:.1%}" for level in range(flags.num_levels))
    return (
        f"# A quantizer of {headline['n']} items\n\n"
        f"Fitted by `recipe_jax` ({flags.method}) to {flags.source}: {flags.num_levels} levels "
        f"of {flags.num_codes} codes. It takes vectors made as those were, and scales them "
        "itself.\n\n"
        f"Codes used: {usage}. Items that share the codes of another: "
        f"{headline['nearest_collision_rate']:.1%} of them by nearest codes, "
        f"{headline['collision_rate']:.1%} as assigned ({flags.assignment}). Variance that "
        f"decoding does not bring back: {headline['reconstruction_error']:.1%}.\n"
    )

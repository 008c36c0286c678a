"""What defines a training run, and what differs between the models that can be trained."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipes.amounts_protocol import amount_recipes
from experiments.recipes.prepared import Prepared
from recipe_jax.batches import Molecules, RecipeBatch
from recipe_jax.data.batching import BUCKETS, pad_recipes
from recipe_jax.data.recipes import RecipeSets
from recipe_jax.functional import PureModule
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.food_embedding import SOURCES, FoodEmbeddingConfig
from recipe_jax.training.step import Objective

MAX_FOODS = BUCKETS[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What defines a training run.

    Attributes:
        model: ingredient sets (decoder alone, encoder and decoder, masked sets); foods and grams
            together; or amounts: a mixture, the plain mean, one after the other.
        data: a prepared folder; the sample inside the package if not given.
        run: the run folder; the same command on the same folder resumes.
        steps: updates in all.
        minutes: stop after this many minutes of training, earlier attempts included.
        batch_size: recipes per step.
        learning_rate: peak of the schedule.
        weight_decay: times the learning rate.
        dropout: of the transformer's sublayers.
        member_dropout: share of the foods left out of every second recipe, for amounts.
        embed_dim: width.
        num_layers: depth.
        num_heads: attention heads.
        num_components: of the mixture of amounts.
        sources: what food vectors are made of.
        loss: of the decoder-only generator: on the whole remaining set, or on the next food alone.
        positions: of the decoder-only generator; a set has none.
        pairs: whether the decoder-only generator, where it learns names at all, also remembers
            pairs of foods.
        limit: use only the first so many training recipes.
        seed: of everything random.
        mesh: devices, such as data=2,fsdp=4; one device if not given.
        evaluate_every: steps between validations.
        progress: show the progress bar.
    """

    model: Literal[
        "generator",
        "encoder-decoder",
        "masked-set",
        "joint",
        "amounts",
        "mean-amounts",
        "autoregressive-amounts",
    ] = "generator"
    data: Path | None = None
    run: Path = Path("runs/recipes")
    steps: int = 13_000
    minutes: float | None = None
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    dropout: float = 0.15
    member_dropout: float = 0.0
    embed_dim: int = 160
    num_layers: int = 2
    num_heads: int = 5
    num_components: int = 8
    sources: tuple[str, ...] = SOURCES
    loss: Literal["remaining-set", "next-food"] = "remaining-set"
    positions: Literal["none", "sinusoidal", "learned", "alibi", "rope"] = "none"
    pairs: bool = True
    limit: int | None = None
    seed: int = 0
    mesh: str | None = None
    evaluate_every: int = 1000
    progress: bool = True

    def __post_init__(self) -> None:
        if self.model != "generator":
            for name, only in (("loss", "remaining-set"), ("positions", "none")):
                if getattr(self, name) != only:
                    raise ValueError(
                        f"--{name} {getattr(self, name)}: --model {self.model} knows no {name} but "
                        f"{only}; only --model generator does"
                    )
        if self.member_dropout and "amounts" not in self.model:
            raise ValueError(
                f"--member-dropout {self.member_dropout} is for models of amounts, not for "
                f"--model {self.model}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What differs between models: configuration, data, loss and validation.

    Attributes:
        model_type: key in `huggingface.MODELS`.
        cfg: the model's configuration.
        training: recipes to learn from.
        molecules: the foods' frozen features.
        loss: `(model, batch, key) -> (loss, terms)`.
        validate: `(fn, params) -> metrics`.
        metric: which of them decides, and whether it should grow.
        finish: `(fn, params) -> params`, what is set once training is over.
    """

    model_type: str
    cfg: Any
    training: RecipeSets
    molecules: Molecules
    loss: Any
    validate: Any
    metric: tuple[str, bool]
    finish: Callable[[PureModule[Any], Any], Any] = lambda fn, params: params

    def objective(self, fn: PureModule[Any]) -> Objective:
        """The loss as a function of the parameters."""

        def objective(params: Any, batch: RecipeBatch, key: jax.Array) -> tuple[jax.Array, Any]:
            return self.loss(fn.bind(params), batch, key)

        return objective


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What all tasks of a run share.

    Attributes:
        flags: what defines the run.
        prepared: the data.
        molecules: the foods' frozen features, on the device.
        embedding: how foods become vectors.
        transformer: the stack's shape.
    """

    flags: Flags
    prepared: Prepared
    molecules: Molecules
    embedding: FoodEmbeddingConfig
    transformer: TransformerConfig

    @property
    def num_foods(self) -> int:
        """Size of the vocabulary, which is also the padding index."""
        return self.embedding.num_foods

    def limited(self, sets: RecipeSets) -> RecipeSets:
        """The first `--limit` of these training recipes."""
        limit = self.flags.limit
        if limit is None:
            return sets
        if limit < 1:
            raise ValueError(f"--limit {limit} must be at least 1")
        print(f"data: the first {min(limit, len(sets))} of {len(sets)} recipes", file=sys.stderr)
        return sets.select(np.arange(len(sets)) < limit)


def make_setting(flags: Flags, prepared: Prepared) -> Setting:
    """The shapes that the flags ask for, on this data."""
    molecules = jax.tree.map(jnp.asarray, prepared.molecules)
    return Setting(
        flags=flags,
        prepared=prepared,
        molecules=molecules,
        embedding=FoodEmbeddingConfig(
            num_foods=len(prepared.foods),
            num_components=molecules.composition.shape[1],
            num_compounds=molecules.flavour.shape[1],
            embed_dim=flags.embed_dim,
            sources=flags.sources,
        ),
        transformer=TransformerConfig(
            num_layers=flags.num_layers,
            embed_dim=flags.embed_dim,
            num_heads=flags.num_heads,
            dropout_rate=flags.dropout,
        ),
    )


def weighed_batches(setting: Setting, split: str, *, at_once: int = 256) -> Sequence[RecipeBatch]:
    """The fully weighed recipes of `split`, all padded to one size."""
    recipes = amount_recipes(setting.prepared.sets, split)
    largest = int(recipes.sizes.max(initial=1))
    return [
        pad_recipes(recipes, rows, num_foods=setting.num_foods, size=largest)
        for rows in np.array_split(np.arange(len(recipes)), max(1, len(recipes) // at_once))
    ]

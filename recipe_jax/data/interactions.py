"""Which user took which item: files to histories, histories to what is learned and what is asked.

An item is an index into the ids of a catalogue, in whatever order these stand.  Ids of public data
often run in order of first appearance, and then their neighbourhood gives the answer away: put the
catalogue in a random order before anything sees an index.
"""

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool, Int, Int32, Int64

from recipe_jax.data.files import DataError


class Histories(NamedTuple):
    """The items of each user, in compressed rows: user `i` owns `offsets[i]:offsets[i + 1]`.

    Attributes:
        users: one id a user.
        items: indices into the catalogue's ids; no user has an item twice.
        offsets: row boundaries into `items`.
        ordered: whether a user's items stand in the order of time, the latest last; else they are
            a set.
    """

    users: tuple[str, ...]
    items: Int32[np.ndarray, "total"]
    offsets: Int64[np.ndarray, "u_plus_one"]
    ordered: bool

    @property
    def lengths(self) -> Int64[np.ndarray, "u"]:
        """Items of each user."""
        return np.diff(self.offsets)

    def items_of(self, user: int | np.integer) -> Int32[np.ndarray, "length"]:
        """The items of the user in row `user`."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def rows(self, start: int, stop: int) -> "Histories":
        """The users from row `start` to before row `stop`."""
        offsets = self.offsets[start : min(stop, len(self.users)) + 1]
        items = self.items[offsets[0] : offsets[-1]]
        return self._replace(
            users=self.users[start:stop], items=items, offsets=offsets - offsets[0]
        )

    def select(self, rows: Int[np.ndarray, "k"]) -> "Histories":
        """The users in these rows, in this order."""
        return histories_of(
            [self.users[row] for row in rows],
            [self.items_of(row) for row in rows],
            ordered=self.ordered,
        )

    def latest(self, count: int) -> "Histories":
        """At most the last `count` items of each user.

        Raises:
            ValueError: histories without an order, in which nothing is last.
        """
        if not self.ordered:
            raise ValueError("histories without an order have no latest items")
        return _keep(self, self.places_from_end < count)

    @property
    def places_from_end(self) -> Int64[np.ndarray, "total"]:
        """How many items of the same user follow each item; 0 for a user's last."""
        return np.repeat(self.offsets[1:], self.lengths) - 1 - np.arange(len(self.items))


class Queries(NamedTuple):
    """What a recommender is asked: for each history the one item that was left out.

    Attributes:
        histories: what is known of each user.
        targets: the item to be found, which the history does not hold.
    """

    histories: Histories
    targets: Int32[np.ndarray, "u"]

    def select(self, rows: Int[np.ndarray, "k"]) -> "Queries":
        """The queries in these rows, in this order."""
        return Queries(self.histories.select(rows), self.targets[rows])


class Split(NamedTuple):
    """Interactions to learn from, to choose by and to test on; each is in one part only.

    Attributes:
        train: of every user, what neither validation nor test asks for.
        validation: from the training items to one more.
        test: from training and validation items to one more.
        num_too_short: users with fewer than three items, who are learned from and never asked.
        before_test: `train` with the validation items in their places: what may be learned from
            once everything has been chosen.
    """

    train: Histories
    validation: Queries
    test: Queries
    num_too_short: int
    before_test: Histories


def histories_of(
    users: Sequence[str],
    items: Sequence[Any],
    *,
    ordered: bool,
) -> Histories:
    """Histories from one array or list of items for each user."""
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in items])]).astype(np.int64)
    flat = np.concatenate([np.zeros(0, np.int32), *(np.asarray(row, np.int32) for row in items)])
    return Histories(tuple(users), flat, offsets, ordered)


def read_histories(path: Path, item_ids: Sequence[str]) -> Histories:
    """Read one line a user, `user item item …`, items in the order of time; plain or gzipped.

    Args:
        path: the file, in UTF-8; a name ending in `.gz` is unpacked.
        item_ids: of the catalogue; an item's index is its place here.

    Raises:
        DataError: a missing, damaged or empty file, or a line that breaks a rule: a user without
            items, a user of an earlier line, an item that is unknown or repeated.
    """
    index = _index_of(item_ids)
    users: dict[str, int] = {}
    items: list[list[int]] = []
    for row, line in enumerate(_lines_of(path), start=1):
        place = f"{path}: line {row}"
        user, *names = _words(place, line)
        if users.setdefault(user, row) != row:
            raise DataError(f"{place}: user {user!r} is that of line {users[user]}; join the lines")
        items.append(_known_items(place, user, names, index))
    if not users:
        raise DataError(f"{path}: holds no user")
    return histories_of(list(users), items, ordered=True)


def read_mealrec(path: Path, item_ids: Sequence[str]) -> Histories:
    """Read the pairs of user and recipe of MealRec+ (Li et al. 2024, arXiv:2404.05386).

    Recipes without content, and those that the catalogue does not hold, are left out, and with them
    users of whom nothing is left.  Users stand in the order of their first row.

    Args:
        path: a parquet table with the columns `user_id, recipe_id, has_content`.
        item_ids: of the catalogue; an item's index is its place here.

    Raises:
        DataError: a missing or damaged file, a missing column, a row with a missing value or with
            the pair of an earlier one, or no recipe of the catalogue at all.
    """
    index = _index_of(item_ids)
    columns = ["user_id", "recipe_id", "has_content"]
    table = _read_table(path, columns).select(columns)
    for column in columns:
        empty = table[column].is_null().arg_true()
        if len(empty):
            raise DataError(f"{path}: row {empty[0] + 1}, column {column}: must not be missing")
    pairs = table.select(pl.struct("user_id", "recipe_id").alias("pair"))["pair"]
    repeated = (~pairs.is_first_distinct()).arg_true()
    if len(repeated):
        recipe = table["recipe_id"][repeated[0]]
        raise DataError(
            f"{path}: row {repeated[0] + 1}: recipe {recipe!r} stands in an earlier row of the "
            "same user, must do so once"
        )
    found: dict[str, list[int]] = {}
    for user, recipe, has_content in table.iter_rows():
        if has_content and recipe in index:
            found.setdefault(str(user), []).append(index[recipe])
    if not found:
        raise DataError(f"{path}: holds no recipe of the catalogue's {len(item_ids)}")
    return histories_of(list(found), list(found.values()), ordered=False)


def mealrec_recipes(path: Path) -> tuple[str, ...]:
    """The recipes with content that some user of MealRec+ took, in the order of their names.

    Raises:
        DataError: as `read_mealrec`, which checks the rows.
    """
    table = _read_table(path, ["recipe_id", "has_content"])
    return tuple(sorted(table.filter(pl.col("has_content"))["recipe_id"].drop_nulls().unique()))


def distinct_items(path: Path) -> tuple[str, ...]:
    """The items that a file of histories names, in the order of their first appearance.

    Raises:
        DataError: as `read_histories`, which checks the lines.
    """
    names: dict[str, None] = {}
    for row, line in enumerate(_lines_of(path), start=1):
        names |= dict.fromkeys(_words(f"{path}: line {row}", line)[1:])
    return tuple(names)


def shuffled_ids(item_ids: Sequence[str], *, seed: int) -> tuple[str, ...]:
    """The ids in a random order, so that an item's index tells nothing of the item."""
    order = np.random.default_rng(seed).permutation(len(item_ids))
    return tuple(item_ids[int(place)] for place in order)


def without_items(histories: Histories, left_out: Bool[np.ndarray, "n"]) -> Histories:
    """The same users as if some items did not exist; those of whom nothing is left go, too.

    Args:
        histories: of items that `left_out` has an entry for.
        left_out: whether each item of the catalogue goes.
    """
    kept = _keep(histories, ~left_out[histories.items])
    return kept.select(np.flatnonzero(kept.lengths))


def leave_last_out(histories: Histories) -> Split:
    """The last item of every user for the test, the one before it for validation.

    Raises:
        ValueError: histories without an order.
        DataError: no user with three items, of whom anything could be asked.
    """
    if not histories.ordered:
        raise ValueError("leave_last_out needs ordered histories: take random_leave_one_out")
    return _leave_out(histories, histories.places_from_end)


def random_leave_one_out(histories: Histories, *, seed: int) -> Split:
    """One random item of every user for the test and another for validation.

    The draw depends on the seed, the user's id and the order in which the user's items were read
    alone: it is the same whichever other users there are, and whatever the items' indices.

    Args:
        histories: sets of items.
        seed: of the draw.

    Raises:
        ValueError: ordered histories, where what came later would be learned from.
        DataError: no user with three items, of whom anything could be asked.
    """
    if histories.ordered:
        raise ValueError("random_leave_one_out would learn from the future: take leave_last_out")
    return _leave_out(histories, np.concatenate(_drawn_orders(histories, str(seed))))


def in_random_order(histories: Histories, *, seed: int, draw: int = 0) -> Histories:
    """Sets as histories: each user's items in an order that depends on seed, draw and user alone.

    Args:
        histories: sets of items.
        seed: of all draws.
        draw: which of the orders, such as the pass over the data.

    Raises:
        ValueError: histories that have an order.
    """
    if histories.ordered:
        raise ValueError("in_random_order would lose the order of these histories: it is for sets")
    orders = _drawn_orders(histories, f"{seed} order {draw}")
    rows = [histories.items_of(user)[order] for user, order in enumerate(orders)]
    return histories_of(histories.users, rows, ordered=True)


def _drawn_orders(histories: Histories, draw: str) -> list[Int64[np.ndarray, "length"]]:
    """A permutation of each user's items, whichever other users there are."""
    orders = []
    for user, length in zip(histories.users, histories.lengths, strict=True):
        digest = hashlib.sha1(f"{draw} {user}".encode()).digest()
        orders.append(np.random.default_rng(list(digest)).permutation(length))
    return orders


def _leave_out(histories: Histories, turns: Int64[np.ndarray, "total"]) -> Split:
    """The item in turn 0 is for the test, that in turn 1 for validation."""
    asked = histories.lengths >= 3
    if not asked.any():
        raise DataError(
            f"none of {len(histories.users)} users has 3 items: one to learn from, one for "
            "validation and one for the test"
        )
    spared = ~np.repeat(asked, histories.lengths)
    rows = np.flatnonzero(asked)

    def query(turn: int) -> Queries:
        known = _keep(histories, turns > turn).select(rows)
        return Queries(known, histories.items[(turns == turn) & ~spared])

    train = _keep(histories, spared | (turns > 1))
    before_test = _keep(histories, spared | (turns > 0))
    return Split(train, query(1), query(0), int((~asked).sum()), before_test)


def _keep(histories: Histories, kept: Bool[np.ndarray, "total"]) -> Histories:
    """The same users with some of their items."""
    places = np.concatenate([[0], np.cumsum(kept)])[histories.offsets]
    return histories._replace(items=histories.items[kept], offsets=places.astype(np.int64))


def _index_of(item_ids: Sequence[str]) -> dict[str, int]:
    index = {name: place for place, name in enumerate(item_ids)}
    if len(index) != len(item_ids):
        raise ValueError(f"item_ids must be distinct: {len(item_ids) - len(index)} are repeated")
    return index


def _known_items(place: str, user: str, names: list[str], index: dict[str, int]) -> list[int]:
    if not names:
        raise DataError(f"{place}: user {user!r} has no item, must have at least one")
    seen: set[str] = set()
    for name in names:
        if name not in index:
            raise DataError(f"{place}: item {name!r} is not among the catalogue's {len(index)}")
        if name in seen:
            raise DataError(
                f"{place}: item {name!r} is repeated; what a history holds is never recommended, "
                "so each item must stand in it once"
            )
        seen.add(name)
    return [index[name] for name in names]


def _words(place: str, line: bytes) -> list[str]:
    try:
        words = line.decode().split()
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: byte {error.start} is no UTF-8") from error
    if not words:
        raise DataError(f"{place}: is empty, must be a user and their items")
    return words


def _lines_of(path: Path) -> list[bytes]:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason})") from error
    lines = content.split(b"\n")
    return lines[:-1] if not lines[-1] else lines


def _read_table(path: Path, columns: list[str]) -> pl.DataFrame:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: not a parquet table ({str(error).splitlines()[0]})") from error
    for column in columns:
        if column not in table.columns:
            raise DataError(f"{path}: column {column!r} is missing; it has {table.columns}")
    return table

"""Targets found without learning: remembered, most frequent, or most alike by their letters."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from rapidfuzz import fuzz, process
from rapidfuzz.utils import default_process

from experiments.sequence_to_sequence.text_pairs import Pair

_WORD = re.compile(r"[^\W\d_]+")
_BLOCK = 64


def words_of(source: str) -> str:
    """The words of a text in lower case, without numbers and punctuation."""
    return " ".join(_WORD.findall(source.lower()))


def remembered(training: Sequence[Pair], sources: Sequence[str]) -> list[str]:
    """The target of the same source in training; empty without one, as splits are disjoint."""
    targets = {pair.source: pair.target for pair in training}
    return [targets.get(source, "") for source in sources]


def remembered_words(training: Sequence[Pair], sources: Sequence[str]) -> list[str]:
    """The most frequent target of the training sources with the same words, numbers aside."""
    counts: dict[str, Counter[str]] = {}
    for source, target in training:
        counts.setdefault(words_of(source), Counter())[target] += 1
    return [_commonest(counts.get(words_of(source), Counter())) for source in sources]


def most_frequent(training: Sequence[Pair], sources: Sequence[str]) -> list[str]:
    """The most frequent target of training, for every source."""
    return [_commonest(Counter(pair.target for pair in training))] * len(sources)


def longest_inside(training: Sequence[Pair], sources: Sequence[str]) -> list[str]:
    """The longest target of training that stands in the source, where a word begins.

    `onion` stands in `2 onions`, and not in `2 scallions`.
    """
    by_length = sorted({pair.target for pair in training}, key=lambda t: (-len(t), t))
    known = [(f" {words_of(target)}", target) for target in by_length if words_of(target)]
    found = []
    for source in sources:
        text = f" {words_of(source)}"
        found.append(next((target for start, target in known if start in text), ""))
    return found


def nearest_target(training: Sequence[Pair], sources: Sequence[str]) -> list[str]:
    """The target of training that rapidfuzz finds most like the source (WRatio)."""
    targets = sorted({pair.target for pair in training})
    return [targets[place] for place in _nearest(sources, targets, fuzz.WRatio)]


def nearest_source(training: Sequence[Pair], sources: Sequence[str]) -> list[str]:
    """The target of the training source with the fewest insertions and deletions to this one."""
    known = [pair.source for pair in training]
    return [training[place].target for place in _nearest(sources, known, fuzz.ratio)]


BASELINES: dict[str, Callable[[Sequence[Pair], Sequence[str]], list[str]]] = {
    "remembered": remembered,
    "remembered_words": remembered_words,
    "most_frequent": most_frequent,
    "longest_inside": longest_inside,
    "nearest_target": nearest_target,
    "nearest_source": nearest_source,
}
"""Name -> what it writes for sources, given the training pairs."""


def _commonest(counts: Counter[str]) -> str:
    """The most frequent text, of several the first by its letters; empty without any."""
    return min(counts, key=lambda text: (-counts[text], text), default="")


def _nearest(texts: Sequence[str], known: Sequence[str], scorer: Callable[..., float]) -> list[int]:
    """The place of the most similar known text for each text; of several the first."""
    prepared, places = [default_process(text) for text in known], []
    for start in range(0, len(texts), _BLOCK):
        block = [default_process(text) for text in texts[start : start + _BLOCK]]
        scores = process.cdist(block, prepared, scorer=scorer, dtype=np.float32, workers=-1)
        places += [int(place) for place in scores.argmax(axis=1)]
    return places

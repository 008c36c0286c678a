"""The public data sets this project can learn from: where they are, whose, and how to get them.

Nothing is downloaded unless `fetch` is called, and it prints every licence notice first.
"""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import pooch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from recipe_jax.data.downloading import DownloadError, ResumingDownloader

_CHECKSUMS = "checksums.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of a source.

    Attributes:
        url: http or https, at a pinned commit wherever the host has commits.
        path: where it goes, below the folder given to `fetch`.
        sha256: of the whole file.  None where it cannot be known beforehand: archives are packed by
            the host on demand.  Their checksum is recorded at the first download, in
            `checksums.json`, and holds from then on.
    """

    url: str
    path: str
    sha256: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A data set with its licence.

    Attributes:
        name: what `fetch` calls it.
        description: one line.
        licence: the notice that is printed before anything is downloaded.
        citation: how its authors are credited.
        files: what is downloaded.
    """

    name: str
    description: str
    licence: str
    citation: str
    files: tuple[SourceFile, ...]


def _raw(repository: str, commit: str, path: str) -> str:
    return f"https://raw.githubusercontent.com/{repository}/{commit}/{quote(path)}"


def _archive(repository: str, commit: str) -> str:
    return f"https://codeload.github.com/{repository}/tar.gz/{commit}"


_RECIPES = ("dpapathanasiou/recipes", "312b3ad7e17f25689a31ae52f555e542befe8304")
_USDA = ("hadley/usdanutrients", "7d8a67056493eaf0f955153a5d8f74fe702b4d18")
_WEIGHTS = ("m5n/nutriana", "cf003a30e05206d26985ec5dbb44bb097fc7f808")
_FLAVOUR = ("cehali/FlavorAnalysis", "816a11e9540715c9e4c2f333d0cb96b6ea27cce9")
_MEALREC = ("WUT-IDEA/MealRecPlus", "8bd7d7d7effb505be4a7d2074b28abad802fe0f7")
_PUBLIC_DOMAIN = ("ronaldl29/public-domain-recipes", "61b488ee25afd3abacc7aec408752f3987a9f8b3")
_PANTRYPILOT = ("abhikothari091/PantryPilot", "a1aa0414c1558763ceea4492e69d1384c4dbd1a2")
_S3REC = ("RUCAIBox/CIKM2020-S3Rec", "2a81540ae18615d88ef88227b0c066e5b74781e5")
_TRANSREC = ("Linxyhaha/TransRec", "da14d539a88bbdec4b1a36259b54068047134c29")
_LETTER = ("HonghuiBao2000/LETTER", "8d0154e28de37dbb6e24871c508ad8ddb1921cda")
_STORIES = "https://huggingface.co/karpathy/tinyllamas/resolve/main/stories260K"

SOURCES: tuple[Source, ...] = (
    Source(
        name="recipes",
        description="about 70,000 recipes, one JSON file each; `collect_recipes` reads the archive",
        licence=(
            "The repository is MIT. Its recipes were collected from Allrecipes, Epicurious, Food "
            "Network and Williams-Sonoma, whose rights are not cleared: use them for research, do "
            "not redistribute them, show no more of one than its title."
        ),
        citation="D. Papathanasiou, github.com/dpapathanasiou/recipes",
        files=(SourceFile(url=_archive(*_RECIPES), path="recipes/recipes.tar.gz"),),
    ),
    Source(
        name="composition",
        description="USDA SR26: foods, components per 100 g, definitions, household weights (.rda)",
        licence="U.S. Department of Agriculture, public domain. The R packaging is by H. Wickham.",
        citation="USDA National Nutrient Database for Standard Reference, Release 26 (2013)",
        files=tuple(
            SourceFile(url=_raw(*_USDA, f"data/{table}.rda"), path=f"usda_sr26/{table}.rda")
            for table in ("food", "food_group", "nutrient", "nutrient_def", "weight")
        ),
    ),
    Source(
        name="household-weights",
        description="USDA SR28: grams of a cup, a slice, a clove",
        licence="U.S. Department of Agriculture, public domain. The repository is MIT.",
        citation="USDA National Nutrient Database for Standard Reference, Release 28 (2015)",
        files=(
            SourceFile(
                url=_raw(*_WEIGHTS, "usda_nndsr/data/WEIGHT.txt"), path="usda_sr28/WEIGHT.txt"
            ),
        ),
    ),
    Source(
        name="flavour",
        description="1,530 ingredients and which of 1,107 flavour compounds each contains",
        licence="CC BY 4.0 (creativecommons.org/licenses/by/4.0): name the authors.",
        citation="Ahn, Ahnert, Bagrow, Barabasi: Flavor network and the principles of food "
        "pairing. Scientific Reports 1, 196 (2011)",
        files=tuple(
            SourceFile(
                url=_raw(*_FLAVOUR, f"ingr_comp/{table}.tsv"),
                path=f"ahn_flavor_network/{table}.tsv",
                sha256=sha256,
            )
            for table, sha256 in (
                ("ingr_comp", "a7ff2186b9fab83ff5c59c2bcfc97e971df00257bd28f5a31725f76e1c3f73a4"),
                ("ingr_info", "5ff493a5cc680a7d5b1dde013f5de69e36f481affaabe4b24bc2acc9ede5f518"),
                ("comp_info", "17ae9e5034ae0bd8dcb9845af32ddefb88909d0af5bf68d96a7cf399fc1e35cc"),
            )
        ),
    ),
    Source(
        name="interactions",
        description="which of 1,928 people cooked which Allrecipes recipe (MealRec+ L)",
        licence="No licence is stated; its authors ask to be cited. For research.",
        citation="Li, Li, Tao, Huang: MealRec+, a meal recommendation dataset. SIGIR 2024, "
        "doi.org/10.1145/3626772.3657857",
        files=tuple(
            SourceFile(
                url=_raw(*_MEALREC, f"MealRec+/MealRec+L/meta_data/{table}"),
                path=f"interactions/{table}",
            )
            for table in ("user_course.zip", "course2index.txt", "user2index.txt")
        ),
    ),
    Source(
        name="public-domain-recipes",
        description="about 410 recipes with directions, in Markdown",
        licence="Unlicense: dedicated to the public domain.",
        citation="github.com/ronaldl29/public-domain-recipes",
        files=(
            SourceFile(
                url=_archive(*_PUBLIC_DOMAIN),
                path="public_domain_recipes/public_domain_recipes.tar.gz",
            ),
        ),
    ),
    Source(
        name="preferences",
        description="43 pairs of a chosen and a rejected recipe; 2,400 synthetic recipes",
        licence="MIT, Copyright (c) 2025 PantryPilot Contributors.",
        citation="github.com/abhikothari091/PantryPilot",
        files=tuple(
            SourceFile(
                url=_raw(*_PANTRYPILOT, f"model_development/{path}"),
                path=f"pantrypilot/{path.rpartition('/')[2]}",
                sha256=sha256,
            )
            for path, sha256 in (
                (
                    "user_data/my_preferences.jsonl",
                    "8ce6e02321d0fa13ebf73dc44a3cb0a1d0100c4a21d75f002d21daebefc739de",
                ),
                (
                    "reward_model/new_reward_data/cleaned/recipes_test_cleaned.jsonl",
                    "271d568e1d9ec452835b81478e8c78fdd3063daad6f97c9984f67f7dd56b255f",
                ),
                (
                    "reward_model/new_reward_data/cleaned/recipes_val_cleaned.jsonl",
                    "b3d07c84f3550ee7d1c6d4910cab85623b60591093e7ebf795aedac8d7764bbf",
                ),
            )
        ),
    ),
    Source(
        name="beauty",
        description="Amazon Beauty: 22,363 people's items in order of time, published item codes",
        licence="McAuley's Amazon reviews: for research use. No licence is stated for the codes.",
        citation="Zhou et al.: S3-Rec, CIKM 2020; Wang et al.: LETTER, CIKM 2024",
        files=(
            SourceFile(
                url=_raw(*_S3REC, "data/Beauty.txt"),
                path="amazon_beauty/Beauty.txt",
                sha256="226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8",
            ),
            SourceFile(
                url=_raw(*_LETTER, "data/Beauty/Beauty.index.json"),
                path="amazon_beauty/Beauty.index.json",
                sha256="be3fb890e59b5443824cdebc560ef349191b97f20d3aecad4727de2d6b212c82",
            ),
        ),
    ),
    Source(
        name="beauty-titles",
        description="titles of the Beauty items, as a pickled array: this library never loads it",
        licence="McAuley's Amazon review data: for research use. Unpickle it in a sandbox only.",
        citation="Lin et al.: Bridging Items and Language (TransRec), KDD 2024",
        files=(
            SourceFile(
                url=_raw(*_TRANSREC, "data/beauty/rec_data/title_maps.npy"),
                path="amazon_beauty/title_maps.npy",
            ),
        ),
    ),
    Source(
        name="stories260k",
        description="a Llama of 260,032 parameters and its tokenizer",
        licence="MIT, A. Karpathy.",
        citation="huggingface.co/karpathy/tinyllamas",
        files=(
            SourceFile(
                url=f"{_STORIES}/stories260K.bin",
                path="llama_stories260k/stories260K.bin",
                sha256="b0a507e7ad0f626624f17112325e66691f9076d622e1d3274d103d00299f2696",
            ),
            SourceFile(
                url=f"{_STORIES}/tok512.bin",
                path="llama_stories260k/tok512.bin",
                sha256="037cb335abb25d1fa9e8ecae30ed2a3a8ace9302862ebcdc05d51a6bbb10c312",
            ),
        ),
    ),
)


def find_sources(names: Sequence[str], sources: Sequence[Source] = SOURCES) -> tuple[Source, ...]:
    """The sources of these names, in this order.

    Raises:
        DownloadError: a name that is not among them.
    """
    known = {source.name: source for source in sources}
    for name in names:
        if name not in known:
            raise DownloadError(f"source {name!r} is unknown; there are {', '.join(known)}")
    return tuple(known[name] for name in names)


def fetch(
    names: Sequence[str],
    out: Path,
    *,
    sources: Sequence[Source] = SOURCES,
    attempts: int = 5,
    wait_seconds: float = 1.0,
    show: Callable[[str], None] | None = None,
) -> list[Path]:
    """Print the licence notices, then download what is missing or damaged.

    A file appears under its name only when whole and, where a checksum is known, right.  Stopped at
    any point, the same call continues where it was.

    Args:
        names: sources to fetch.
        out: folder for the files; made where missing.
        sources: the table to look `names` up in.
        attempts: connections tried for each file.
        wait_seconds: pause after a file's first failed attempt; doubles with each further one.
        show: prints a line; to standard error unless given.

    Returns:
        The files, whether downloaded now or before.

    Raises:
        DownloadError: an unknown name, a missing file, a wrong checksum, a server that does not
            answer, or a folder that cannot be written.
    """
    chosen = find_sources(names, sources)
    console = Console(stderr=True)
    show = show or (lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))
    for source in chosen:
        show(f"{source.name}: {source.description}")
        show(f"  licence: {source.licence}")
        show(f"  cite: {source.citation}")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=console) as progress, _quiet_pooch():
        paths = []
        for file in (file for source in chosen for file in source.files):
            task = progress.add_task(file.path, total=None)
            downloader = ResumingDownloader(
                partial=out / f"{file.path}.part",
                attempts=attempts,
                wait_seconds=wait_seconds,
                on_progress=lambda held, expected, task=task: progress.update(
                    task, completed=held, total=expected
                ),
            )
            paths.append(_fetch_file(file, out, downloader))
            size = paths[-1].stat().st_size
            progress.update(task, completed=size, total=size)
    return paths


@contextlib.contextmanager
def _quiet_pooch() -> Iterator[None]:
    """Without pooch's advice to pin checksums in code: they are recorded beside the data."""
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _fetch_file(file: SourceFile, out: Path, downloader: ResumingDownloader) -> Path:
    path = out / file.path
    expected = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        recorded = _read_checksums(out / _CHECKSUMS)
        expected = file.sha256 or recorded.get(file.path)
        pooch.retrieve(
            file.url,
            expected,
            fname=path.name,
            path=path.parent,
            downloader=downloader,  # pyright: ignore[reportArgumentType]  (names differ)
        )
        if expected is None:
            _write_checksums(out / _CHECKSUMS, recorded | {file.path: pooch.file_hash(str(path))})
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"{path}: cannot be written ({error.strerror or error})") from error
    except ValueError as error:  # pooch: the checksum differs; it has deleted the download
        recorded_only = "" if file.sha256 else f", or delete its line in {out / _CHECKSUMS}"
        raise DownloadError(
            f"{file.url}: what arrived has not the expected sha256 {expected} and was deleted; "
            f"try again{recorded_only}; if it stays so, the publisher's file has changed"
        ) from error
    return path


def _read_checksums(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise DownloadError(f"{path}: not a JSON object of path and sha256; delete it") from error


def _write_checksums(path: Path, checksums: dict[str, str]) -> None:
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(json.dumps(checksums, indent=2, sort_keys=True) + "\n")
    temporary.replace(path)

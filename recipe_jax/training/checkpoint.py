"""Checkpoints: written in the background by Orbax, verified when read, restored onto any mesh.

A step is a folder with three items: `params` and `rest` (flat dicts of arrays by path, so that no
key changes its type on the way) and `run`, a JSON object with a record of every array, the progress
of the run, each process's position in the data, and the configuration.
"""

import contextlib
import dataclasses
import errno
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import PreservationPolicy

from recipe_jax.functional import Params
from recipe_jax.sharding import gather_json
from recipe_jax.training.fingerprints import fingerprints
from recipe_jax.training.orbax_messages import forget_frames, orbax_silenced, short_reason
from recipe_jax.training.run_folder import TrainingError, write_text
from recipe_jax.training.state import TrainState

FORMAT = "recipe-jax checkpoint 1"
Tree: TypeAlias = Any
FlatArrays: TypeAlias = dict[str, Any]


class CheckpointError(TrainingError):
    """A checkpoint cannot be written or read.  One line names the folder and the way out."""


class Progress(NamedTuple):
    """Where a run stands beside its arrays.

    Attributes:
        wall_seconds: time spent on training so far, earlier attempts included.
        data: this process's position in the data, as JSON can hold it; None if unknown.
        best_step: the checkpoint with the best validation metric so far.
        best_value: that metric.
        evaluations_without_gain: validations since then.
    """

    wall_seconds: float = 0.0
    data: Any = None
    best_step: int | None = None
    best_value: float | None = None
    evaluations_without_gain: int = 0


class Checkpoints:
    """The checkpoints of one run: the latest few and the best.

    Opening removes half-written steps, which an interrupted process leaves behind.  Close
    it, or use it as a context manager.

    Args:
        folder: holds one folder per step.
        keep_latest: how many of the newest steps to keep.
        config: written into every checkpoint.
        read_only: change nothing, not even leftovers; for reading a run that may be training.

    Raises:
        CheckpointError: if the folder cannot be opened.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_latest: int = 2,
        config: Mapping[str, Any] | None = None,
        read_only: bool = False,
    ):
        self.folder = folder.absolute()
        self._config = dict(config or {})
        self._keep = _KeepLatestAndBest(keep_latest)
        if read_only and not self.folder.is_dir():
            raise CheckpointError(
                f"{self.folder}: no such folder: train first, or name another run"
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._keep,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        self._silence = contextlib.ExitStack()
        self._silence.enter_context(orbax_silenced())
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except Exception as error:
            self._silence.close()
            raise CheckpointError(
                f"{self.folder}: cannot be opened ({short_reason(error)}): choose another --run"
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, progress: Progress) -> None:
        """Start to write a checkpoint; returns once the arrays may be changed.

        Of a step that is already saved only the progress is renewed.  A failure in the background
        shows at the next `save` or at `finish`.

        Raises:
            CheckpointError: if this or the previous checkpoint cannot be written.
        """
        position = {
            "progress": progress._replace(data=None)._asdict(),
            "data": gather_json(progress.data),
        }
        self._keep.best_step = progress.best_step
        if step in self.steps():
            self._renew(step, position)
            return
        params, rest = _flat_items(state)
        arrays = _records(params) | _records(rest)
        record = {"format": FORMAT, "arrays": arrays, "config": self._config} | position
        arguments = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            rest=ocp.args.StandardSave(rest),
            run=ocp.args.JsonSave(record),
        )
        with self._writing():
            _check_space(self.folder, params | rest)
            self._manager.save(step, args=arguments)

    def finish(self) -> None:
        """Wait until everything is on disk.

        Raises:
            CheckpointError: if a checkpoint could not be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Release threads; errors of a save that failed were raised before and are dropped."""
        with self._silence, contextlib.suppress(Exception):
            self._manager.close()

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, Progress]:
        """Read a checkpoint, verified, onto the devices of `like`.

        Args:
            like: a state with the same arrays, wherever they are; its buffers are freed first, so
                that the state is never in memory twice.
            step: which checkpoint; by default the latest.

        Raises:
            CheckpointError: if there is none, or it is damaged, incomplete or of another model.
        """
        step, record = self._read_record(step)
        params, rest = _flat_items(like)
        targets = [_targets(params), _targets(rest)]
        self._check_record(step, record, targets[0] | targets[1])
        keys = {
            name: jax.random.key_impl(leaf)
            for name, leaf in _named_leaves(like).items()
            if _is_key(leaf)
        }
        names, structure = list(_named_leaves(like)), jax.tree.structure(like)
        for leaf in jax.tree.leaves(like):
            leaf.delete()
        arrays = self._read_arrays(step, record, {"params": targets[0], "rest": targets[1]})
        leaves = [
            jax.random.wrap_key_data(arrays[name], impl=keys[name])
            if name in keys
            else arrays[name]
            for name in names
        ]
        state = jax.tree.unflatten(structure, leaves)
        return state, self._progress(step, record)

    def restore_params(self, shapes: Params, step: int | None = None) -> Params:
        """Read the parameters alone, verified.

        Args:
            shapes: nested dict of arrays or of `jax.ShapeDtypeStruct`, such as `fn.shapes`; where
                they have a sharding it is followed.
            step: which checkpoint; by default the best, or the latest where none was validated.

        Raises:
            CheckpointError: if there is none, or it is damaged, incomplete or of another model.
        """
        if step is None:
            best = self._read_record(None)[1]["progress"]["best_step"]
            step = best if best in self.steps() else None
        step, record = self._read_record(step)
        targets = _targets(_named_leaves({"params": shapes}))
        self._check_record(step, record, targets, only="params/")
        arrays = self._read_arrays(step, record, {"params": targets})
        return jax.tree.unflatten(jax.tree.structure(shapes), list(arrays.values()))

    def config(self, step: int | None = None) -> dict[str, Any]:
        """The configuration that a checkpoint was written with; by default of the latest."""
        return self._read_record(step)[1]["config"]

    def _renew(self, step: int, position: dict[str, Any]) -> None:
        self.finish()
        _, record = self._read_record(step)
        if jax.process_index() == 0:
            # The file of Orbax's JSON item.
            path = self.folder / str(step) / "run" / "metadata"
            write_text(path, json.dumps(record | position))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = short_reason(error)
            forget_frames(error)
            steps = _complete_steps(self.folder)
            raise CheckpointError(
                f"{self.folder}: a checkpoint cannot be written ({reason}); the last "
                f"good one is {f'step {steps[-1]}' if steps else 'none'}: make space or choose "
                "another --run; the same command resumes from it"
            ) from None

    def _read_record(self, step: int | None) -> tuple[int, dict[str, Any]]:
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            wanted = "" if step is None else f" of step {step}"
            raise CheckpointError(f"{self.folder}: no checkpoint{wanted}; there are steps {steps}")
        step = steps[-1] if step is None else step
        with self._reading(step):
            arguments = ocp.args.Composite(run=ocp.args.JsonRestore())
            record = self._manager.restore(step, args=arguments)["run"]
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise self._unusable(step, f"was not written as {FORMAT!r}")
        return step, record

    def _read_arrays(
        self, step: int, record: Mapping[str, Any], items: Mapping[str, FlatArrays]
    ) -> FlatArrays:
        arguments = {name: ocp.args.StandardRestore(targets) for name, targets in items.items()}
        with self._reading(step):
            restored = self._manager.restore(step, args=ocp.args.Composite(**arguments))
        arrays: FlatArrays = {}
        for item, targets in items.items():
            arrays |= {name: restored[item][name] for name in targets}
        for name, fingerprint in fingerprints(arrays).items():
            if fingerprint != record["arrays"][name][2]:
                raise self._unusable(step, f"is damaged: {name} is not what was written")
        return arrays

    def _progress(self, step: int, record: Mapping[str, Any]) -> Progress:
        data = record["data"]
        if len(data) != jax.process_count() and any(position != data[0] for position in data):
            raise self._unusable(
                step,
                f"has the data positions of {len(data)} processes, not of {jax.process_count()}: "
                f"resume with {len(data)} processes",
            )
        position = data[jax.process_index() if len(data) == jax.process_count() else 0]
        progress = Progress(**record["progress"])._replace(data=position)
        if progress.best_step is not None and progress.best_step not in self.steps():
            progress = progress._replace(best_step=None, best_value=None)
        return progress

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = short_reason(error)
            forget_frames(error)
            raise self._unusable(step, f"is damaged or no checkpoint ({reason})") from None

    def _check_record(
        self, step: int, record: Mapping[str, Any], targets: FlatArrays, *, only: str = ""
    ) -> None:
        saved = {name: value for name, value in record["arrays"].items() if name.startswith(only)}
        for name in sorted({*saved, *targets}):
            if name not in saved or name not in targets:
                where = "this model" if name in targets else "the checkpoint"
                raise self._unusable(step, f"is of another model: only {where} has {name}")
            found = saved[name][0], tuple(saved[name][1])
            wanted = str(targets[name].dtype), tuple(targets[name].shape)
            if found != wanted:
                raise self._unusable(
                    step,
                    f"is of another model: {name} is {found[0]}{list(found[1])}, "
                    f"not {wanted[0]}{list(wanted[1])}",
                )

    def _unusable(self, step: int, problem: str) -> CheckpointError:
        others = [other for other in self.steps() if other != step]
        way_out = (
            f"delete this folder to go on from step {others[-1]}" if others else "use another --run"
        )
        return CheckpointError(f"{self.folder / str(step)}: the checkpoint {problem}: {way_out}")


@dataclasses.dataclass
class _KeepLatestAndBest(PreservationPolicy):
    """Keeps the newest steps and one more; which one is set before each save."""

    keep_latest: int
    best_step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        del context
        newest = len(checkpoints) - self.keep_latest
        return [
            place >= newest or checkpoint.step == self.best_step
            for place, checkpoint in enumerate(checkpoints)
        ]


def _named_leaves(tree: Tree) -> FlatArrays:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _flat_items(state: TrainState) -> tuple[FlatArrays, FlatArrays]:
    arrays = {
        name: jax.random.key_data(leaf) if _is_key(leaf) else leaf
        for name, leaf in _named_leaves(state).items()
    }
    params = {name: array for name, array in arrays.items() if name.startswith("params/")}
    return params, {name: array for name, array in arrays.items() if name not in params}


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _targets(arrays: FlatArrays) -> FlatArrays:
    return {
        name: jax.ShapeDtypeStruct(
            array.shape, array.dtype, sharding=getattr(array, "sharding", None)
        )
        for name, array in arrays.items()
    }


def _records(arrays: FlatArrays) -> dict[str, tuple[str, list[int], int]]:
    marks = fingerprints(arrays)
    return {
        name: (str(array.dtype), list(array.shape), marks[name]) for name, array in arrays.items()
    }


def _check_space(folder: Path, arrays: FlatArrays) -> None:
    """Refuse before anything is written: a disk that is full half-way costs a save and its time."""
    needed = sum(
        shard.data.nbytes for array in arrays.values() for shard in array.addressable_shards
    )
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"No space left on device: {needed} bytes needed, {free} free")


def _complete_steps(folder: Path) -> list[int]:
    return sorted(int(entry.name) for entry in folder.glob("*") if entry.name.isdecimal())

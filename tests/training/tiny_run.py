"""A regression of four numbers that trains in milliseconds; also a program, to be killed."""

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

WIDTH = 8


class TinyBatch(NamedTuple):
    inputs: np.ndarray
    targets: np.ndarray


class TinyModel(nnx.Module):
    """Two layers whose hidden axis has a name that tests may change."""

    def __init__(self, *, hidden_axis: str = "mlp", rngs: nnx.Rngs):
        up = jax.random.normal(rngs.params(), (WIDTH, 4 * WIDTH)) / 3
        down = jax.random.normal(rngs.params(), (4 * WIDTH, WIDTH)) / 6
        self.up = nnx.Param(up, axes=("embed", hidden_axis))
        self.down = nnx.List([nnx.Param(down, axes=(hidden_axis, "embed"))])
        self.bias = nnx.Param(jnp.zeros(WIDTH), axes=("embed",))

    def __call__(self, inputs):
        return jnp.tanh(inputs @ self.up[...]) @ self.down[0][...] + self.bias[...][None, :]


def make_model() -> TinyModel:
    return TinyModel(rngs=nnx.Rngs(7))


def make_objective(fn):
    def objective(params, batch, key):
        noise = 0.01 * jax.random.normal(key, batch.inputs.shape)
        error = fn.bind(params)(batch.inputs + noise) - batch.targets
        return (error**2).mean(), {"mean_error": jnp.abs(error).mean()}

    return objective


def make_optimizer():
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, weight_decay=0.01))


class TinyBatches:
    """Endless batches in two shapes that remember where they are."""

    def __init__(self, seed: int = 0, sizes: tuple[int, ...] = (16, 24)):
        self.seed, self.sizes, self.position = seed, sizes, 0

    def __iter__(self):
        return self

    def __next__(self) -> TinyBatch:
        rng = np.random.default_rng([self.seed, self.position])
        size = self.sizes[self.position % len(self.sizes)]
        self.position += 1
        inputs = rng.normal(size=(size, WIDTH)).astype(np.float32)
        return TinyBatch(inputs, np.roll(inputs, 1, axis=1) * inputs)

    def get_state(self) -> dict:
        return {"position": self.position}

    def set_state(self, state: dict) -> None:
        self.position = state["position"]


def evaluate(state) -> dict[str, float]:
    """Falls for ever, so that the last validation is the best."""
    return {"loss": float(jnp.abs(state.params["up"]).mean() - state.step)}


def params_bytes(params) -> bytes:
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params))


def main() -> None:
    """Train in a run folder; `--kill-at N` sends this process a signal as batch N is asked for."""
    from recipe_jax.functional import purify
    from recipe_jax.sharding import initialize_distributed, make_mesh
    from recipe_jax.training.loop import FitPlan, fit
    from recipe_jax.training.run_folder import TrainingError
    from recipe_jax.training.state import init_sharded, init_state
    from recipe_jax.training.step import make_train_step

    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--checkpoint-every", type=int, default=10)
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--signal", type=int, default=signal.SIGKILL)
    parser.add_argument("--max-file-bytes", type=int)
    parser.add_argument("--mesh")
    options = parser.parse_args()
    initialize_distributed()
    if options.max_file_bytes:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (options.max_file_bytes,) * 2)

    class KillingBatches(TinyBatches):
        def __next__(self):
            if self.position == options.kill_at:
                os.kill(os.getpid(), options.signal)
            share = np.array_split(np.arange(self.sizes[0]), jax.process_count())
            return jax.tree.map(lambda rows: rows[share[jax.process_index()]], super().__next__())

    optimizer, key = make_optimizer(), jax.random.key(5)
    if options.mesh:
        mesh = make_mesh(options.mesh)
        fn, state, shardings = init_sharded(make_model, optimizer, key, mesh)
    else:
        (fn, params), mesh, shardings = purify(make_model()), None, None
        state = init_state(params, optimizer, key)
    try:
        result = fit(
            make_train_step(make_objective(fn), optimizer, shardings),
            state,
            KillingBatches(sizes=(16,)),
            run=options.run,
            plan=FitPlan(
                num_steps=options.steps,
                log_every=5,
                evaluate_every=25,
                checkpoint_every=options.checkpoint_every,
            ),
            config={"model": "tiny"},
            evaluate=evaluate,
            mesh=mesh,
        )
    except TrainingError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    if jax.process_count() == 1:
        (options.run / "params.bin").write_bytes(params_bytes(result.state.params))
    print(json.dumps({"step": result.step, "stopped": result.stopped, **result.timing}))


if __name__ == "__main__":
    main()

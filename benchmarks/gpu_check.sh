#!/usr/bin/env bash
# All that a GPU is needed for, in one go of less than nine minutes: kernels are right, give the
# same bits in every run, train two models, and are measured beside others.
#
#     OUT=benchmarks/records bash benchmarks/gpu_check.sh
#
# Needs jax for CUDA, triton, flax, optax, numpy and rich; torch adds contestants.  Records go to
# $OUT.  What fails does not stop what follows; the exit code is 1 if anything failed.
set -uo pipefail
cd "$(dirname "$0")/.."

out=${OUT:-runs/gpu}
mkdir -p "$out"
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export XLA_PYTHON_CLIENT_PREALLOCATE=false
device=${DEVICE:-gpu} kernels=${KERNELS:-triton} python=${PYTHON:-python3}
processes=$(( $(nproc) / 2 > 0 ? $(nproc) / 2 : 1 ))
failed=0

stage() {
  local name=$1 start=$SECONDS
  shift
  echo "== $name"
  if "$@"; then echo "== $name: $((SECONDS - start)) s"; else
    echo "== $name: FAILED after $((SECONDS - start)) s"
    failed=1
  fi
}

if [ "$device" = gpu ]; then
  cases=(--large) small=() quick=() steps=300
  stage "versions" nvidia-smi --query-gpu=name,driver_version,memory.used --format=csv
else
  # To try the script itself on a machine without one.
  cases=(--only plain "ragged sets") small=(--small) quick=(--quick) steps=20
fi
stage "versions of packages" "$python" -c '
import jax, importlib.metadata as m
known = ("jax", "jaxlib", "triton", "torch", "flax", "optax", "numpy")
installed = {d.metadata["Name"] for d in m.distributions()}
print({name: m.version(name) for name in known if name in installed}, jax.devices())'
# Each writes its record as it goes on: what is stopped keeps what it had found.
stage "correctness" timeout 130 "$python" -m benchmarks.attention_correctness \
  --implementation "$kernels" --processes "$processes" "${cases[@]}" \
  --record "$out/attention_correctness.jsonl"
stage "benchmarks" timeout 250 "$python" -m benchmarks.attention --device "$device" \
  "${quick[@]}" --record "$out/attention_$device.jsonl"
stage "training" timeout 130 "$python" -m benchmarks.attention_training \
  --implementation "$kernels" --steps "$steps" "${small[@]}" \
  --record "$out/attention_training.json"
exit "$failed"

#!/usr/bin/env bash
# What a machine with a GPU is asked: everything in one file, in nine minutes.
#
#   benchmarks/gpu.sh [JOB ...]
#   WHEELS=folder benchmarks/gpu.sh
#   benchmarks/gpu.sh configs/set_seq.py:tiny          to try it, without a GPU
#
# Tests that say something about the device; its ceilings; a training step and
# a step of a sampling of the paper's base and of Wan, in their true sizes on
# random weights: their time, and their memory beside the plan's forecast. What
# fails or runs out of time is recorded as such, and the next part begins.
# The result is benchmarks/results/DATE-MACHINE.json.
#
# Needs Python 3.11 with jax for its device, flax, optax, orbax-checkpoint; no
# network. WHEELS is a folder of wheels of what else it needs, all pure Python,
# which are installed into a folder that is deleted afterwards:
#
#   einops  ml_collections           steps and ceilings (ml_collections reads
#                                    absl-py and PyYAML, which flax brings)
#   pytest  pluggy  iniconfig  packaging            the tests (pytest reads
#                                    Pygments, which flax brings with rich)
#
# Nothing of the usual run imports grain, transformers, tokenizers, safetensors,
# av, PIL, tensorboardX, tensorflow_datasets, pytest-xdist or pytest-timeout. A
# job on a base that is here, such as `tiny`, has transformers read its words;
# no base is downloaded. JOB is as of step.py, with its options behind it:
# 'configs/set_seq.py:wan_1_3b --set=remat=full'. TOTAL changes the 530 seconds,
# TESTS the 90 of them that are for the tests, and PYTHON is what runs it all.
set -uo pipefail
cd "$(dirname "$0")/.."

TOTAL=${TOTAL:-530}
PYTHON=${PYTHON:-python}
BEGAN=$(date +%s)
PARTS=$(mktemp -d)
LIBRARY=$(mktemp -d)
trap 'rm -rf "$PARTS" "$LIBRARY"' EXIT

# part NAME LIMIT COMMAND...: at most so many seconds of those that are left.
part() {
  local name=$1 limit=$2 began left code said
  shift 2
  said="${*//$'\n'/; }" said="${said//$PARTS/PARTS}"
  said="${said//$LIBRARY/LIBRARY}" said="${said//$PYTHON/python}"
  began=$(date +%s)
  # Ten for the end of a part that does not stop, ten to gather.
  left=$((BEGAN + TOTAL - 20 - began))
  [ "$limit" -lt "$left" ] || limit=$left
  if [ "$limit" -lt 15 ]; then
    code=77 limit=0
  else
    echo "== $name, at most $limit s: $said"
    # Python stops at an interrupt with what it has, and says so.
    timeout --signal=INT --kill-after=10 "$limit" "$@" 2>&1 |
      tee "$PARTS/$name.log"
    code=${PIPESTATUS[0]}
  fi
  printf '%s\t%s\t%s\t%s\t%s\n' "$name" "$code" "$(($(date +%s) - began))" \
    "$limit" "$said" >>"$PARTS/parts.tsv"
}

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.95}
if [ -n "${WHEELS:-}" ]; then
  part wheels 60 "$PYTHON" -m pip install --quiet --no-index --no-deps \
    --target "$LIBRARY" "$WHEELS"/*.whl
  export PYTHONPATH="$PYTHONPATH:$LIBRARY"
fi
part device 60 "$PYTHON" -c 'import jax
print(jax.__version__, jax.default_backend(), jax.devices())'
case $(cat "$PARTS/device.log") in
  *' gpu '*) GPU=1 ;;
  *)
    GPU= && echo 'jax sees no GPU: small sizes'
    [ $# -gt 0 ] || set -- configs/set_seq.py:tiny
    ;;
esac

# tests/conftest.py stays on the processor unless it is told otherwise. Tests in
# float32 mean float32, not the TF32 that GPUs multiply with by default.
part tests "${TESTS:-90}" env JAX_PLATFORMS="${GPU:+cuda,}cpu" \
  JAX_DEFAULT_MATMUL_PRECISION=highest "$PYTHON" -m pytest -v -rsfE --tb=short \
  -p no:cacheprovider -o addopts= --import-mode=importlib -W default \
  -m 'not slow' tests/test_device.py tests/test_attention.py \
  tests/test_flow.py tests/test_objective.py tests/test_rope.py \
  tests/test_wan_vae.py tests/test_dit.py tests/test_lora.py
part ceilings 90 "$PYTHON" benchmarks/device.py --name=ceilings \
  --folder="$PARTS"

# step NAME LIMIT JOB OPTION...
step() {
  local name=$1 limit=$2 job=$3
  shift 3
  part "$name" "$limit" "$PYTHON" benchmarks/step.py --job="$job" "$@" \
    --name="$name" --folder="$PARTS"
}
if [ $# -gt 0 ]; then
  number=0
  for job in "$@"; do
    read -r -a words <<<"$job"
    # Two jobs may differ in options alone.
    name=$((++number))_$(tr -c 'a-zA-Z0-9\n' '_' <<<"${words[0]##*/}")
    step "$name" "$((TOTAL / $#))" "${words[@]}"
  done
else
  # Without prior preservation, which does the same again; Wan in the 81 frames
  # that it was trained on, one clip a step. What matters most comes first, and
  # the last parts get what is left of the time.
  alone=--set=prior.videos=0
  clip=(--set=format.frames=81 --set=sequence.batch=1
    --set=sequence.accumulate=1 "$alone")
  step paper_step 200 configs/set_seq.py:snap_dit_11b "$alone" \
    --set=remat=products --only=sequence --seconds=30
  step wan_1_3b 90 configs/set_seq.py:wan_1_3b "${clip[@]}" \
    --set=remat=products --only=sequence,sample --seconds=12
  step paper_sample 90 configs/set_seq.py:snap_dit_11b "$alone" \
    --only=sample --seconds=15
  step wan_14b_step 150 configs/set_seq.py:wan_14b "${clip[@]}" \
    --set=remat=attention --only=sequence --seconds=20
  step wan_14b_sample 150 configs/set_seq.py:wan_14b "${clip[@]}" \
    --only=sample --seconds=20
fi
"$PYTHON" benchmarks/gather.py "$PARTS"

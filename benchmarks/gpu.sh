#!/usr/bin/env bash
# What a machine with a GPU is asked, cheapest first; results/ holds the answers.
#
#   benchmarks/gpu.sh [JOB ...]
#
# The tests that say something about the device, the cost of the default run, and
# the steps of Wan at true size on random weights.
set -euo pipefail
cd "$(dirname "$0")/.."

python -c 'import jax; print(jax.devices()[0].device_kind, jax.__version__)'
python -m pytest -q -p no:cacheprovider \
  tests/test_attention.py tests/test_dit.py tests/test_flow.py \
  tests/test_lora.py tests/test_sampling.py tests/test_train.py \
  tests/test_vae_chunks.py tests/test_wan_vae.py
python benchmarks/personalize.py
for job in "${@:-configs/set_seq.py:wan_1_3b}"; do
  python benchmarks/step.py --job="$job"
done

#!/usr/bin/env bash
# A job on Slurm: one task a GPU. From the root of the repository, on the login
# node:
#
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh \
#     --config=configs/set_seq.py:wan_14b --config.mesh.context=2 \
#     --workdir=/shared/runs/cat
#
# The words are options of dcjax.main; --workdir is a folder that all nodes see.
# jax learns from Slurm who is who, and gives each task one GPU. VENV is the
# virtual environment to use, if any.
#
#SBATCH --job-name=dcjax
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --time=24:00:00
# Told 180 s before the end, or before it has to make room, it saves and exits;
# then it is put back into the queue, and goes on from there.
#SBATCH --requeue
#SBATCH --signal=TERM@180
set -uo pipefail

: "${SLURM_JOB_ID:?give it to sbatch}"
if (($# == 0)); then
  echo 'error: give options of dcjax.main, such as --config=...' >&2
  exit 2
fi
if [[ -n "${VENV:-}" ]]; then
  # shellcheck disable=SC1091
  source "$VENV/bin/activate"
fi

# One file a process; process 0 is the one that speaks.
logs=${LOGS:-runs/slurm-$SLURM_JOB_ID}
mkdir -p "$logs"
echo "tail -f $logs/process-0.log"
srun --kill-on-bad-exit=1 --output="$logs/process-%t.log" --open-mode=append \
  python -m dcjax.main "$@"
code=$?

# 143: it was told to go, and saved (dcjax/processes.py).
if ((code == 143)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

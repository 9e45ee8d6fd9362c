#!/usr/bin/env bash
# N processes of one job on this machine:
#   launch/local.sh 2 python -m dcjax.main --config=configs/set_seq.py:tiny
# See launch/local.py for what it does with signals, failures and logs.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
exec "${PYTHON:-python}" "$root/launch/local.py" "$@"

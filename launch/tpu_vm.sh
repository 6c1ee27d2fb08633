#!/bin/bash
# Runs on every TPU VM, in the folder of the code, which is a clone or the installed package:
# installs what the program needs and starts it.   tpu_vm.sh UNIT [NAME=VALUE...] FLAG...
# systemd restarts a failed program, except for wrong input (exit code 2), and lets it save its step
# when the VM shuts down; a run continues from its last checkpoint. The chips read locked memory, and
# need more of it than a unit may lock by default.
set -euo pipefail
unit=$1
shift
environment=()
while [[ "${1-}" == [A-Za-z_]* ]]; do
  environment+=("$1")
  shift
done
python3 -m pip install --quiet --user uv # it installs Python 3.11; the VMs have 3.10
uv="$HOME/.local/bin/uv"
[ -d "$HOME/venv" ] || "$uv" venv --quiet --python=3.11 "$HOME/venv"
clone=()
if [ -f pyproject.toml ]; then
  clone=(--editable=.)
else
  sed -n '/extra ==/d; s/^Requires-Dist: //p' pixelrec_jax-*.dist-info/METADATA > requirements.txt
fi
"$uv" pip install --quiet --python="$HOME/venv" --requirement=requirements.txt "${clone[@]}" \
  "jax[tpu]" gcsfs # gcsfs reads gs://
sudo systemd-run --unit="$unit" --collect --uid="$(id -u)" --gid="$(id -g)" --same-dir \
  --setenv=HOME="$HOME" --property=Restart=on-failure --property=RestartPreventExitStatus=2 \
  --property=RestartSec=30 --property=StartLimitIntervalSec=1d --property=StartLimitBurst=20 \
  --property=KillMode=mixed --property=TimeoutStopSec=120 \
  --property=LimitMEMLOCK=infinity --property=LimitNOFILE=1048576 \
  /usr/bin/env "${environment[@]//\$/\$\$}" "$HOME/venv/bin/python" -m pixelrec_jax train \
  "${@//\$/\$\$}" # systemd turns $$ into $

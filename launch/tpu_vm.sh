#!/bin/bash
# On every TPU VM, in the folder of the code, which is a clone or the package as it was installed:
# installs what the program needs and starts it.   tpu_vm.sh UNIT FLAG...
# systemd starts it again when it fails, but not when its input is wrong (exit code 2), and lets it
# save its step when the VM shuts down; a run goes on from its last checkpoint. The chips read memory
# that is locked, more than a unit may lock by default.
set -euo pipefail
unit=$1
shift
python3 -m pip install --quiet --user uv # which brings Python 3.11; the VMs have 3.10
uv="$HOME/.local/bin/uv"
[ -d "$HOME/venv" ] || "$uv" venv --quiet --python=3.11 "$HOME/venv"
clone=()
if [ -f pyproject.toml ]; then
  clone=(--editable=.)
else
  sed -n '/extra ==/d; s/^Requires-Dist: //p' pixelrec_jax-*.dist-info/METADATA > requirements.txt
fi
"$uv" pip install --quiet --python="$HOME/venv" --requirement=requirements.txt "${clone[@]}" \
  "jax[tpu]" gcsfs # which reads gs://
sudo systemd-run --unit="$unit" --collect --uid="$(id -u)" --gid="$(id -g)" --same-dir \
  --setenv=HOME="$HOME" --property=Restart=on-failure --property=RestartPreventExitStatus=2 \
  --property=RestartSec=30 --property=StartLimitIntervalSec=1d --property=StartLimitBurst=20 \
  --property=KillMode=mixed --property=TimeoutStopSec=120 \
  --property=LimitMEMLOCK=infinity --property=LimitNOFILE=1048576 \
  "$HOME/venv/bin/python" -m pixelrec_jax train "${@//\$/\$\$}" # of which systemd makes $ again

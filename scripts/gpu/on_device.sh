#!/usr/bin/env bash
# On the machine with the GPU, in the repository's root:  bash scripts/gpu/on_device.sh [SECONDS]
# It ends by itself after so many seconds; at once, with exit code 3, where packages are missing. Results go to $OUT, by
# default .device/out: results.jsonl (a line for each part as soon as it is known), log.txt, profile.json, runs.tar.gz.
# KIT_PARTS=a,b runs these parts alone; KIT_SMALL=1 tries everything at tiny sizes, on a CPU too.
set -uo pipefail
limit=${1:-530}
start=$(date +%s)
root=$(pwd)
export OUT=${OUT:-$root/.device/out}
work=${KIT_WORK:-/tmp/seresnet_hub_gpu}
mkdir -p "$OUT" "$work"
exec > >(tee -a "$OUT/log.txt") 2>&1

stop() { # nothing could be measured, so that the rest of the machine's time is there for another try
    echo "STOPPED after $(($(date +%s) - start)) s: $1"
    sleep 0.5 # for tee
    exit 3
}

echo "== unpacking"
# Only of a module with "site-packages" in its path does dill note the name, else all it holds, which fails for pyarrow.
site=$work/site-packages
rm -rf "$site" && mkdir -p "$site"
# With Python, as the machine may lack xz.
python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="data")' \
    .device/site.tar.xz "$site" || stop "cannot unpack .device/site.tar.xz, which scripts/gpu/prepare.sh makes"
export PYTHONPATH="$site:$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
export TORCHINDUCTOR_CACHE_DIR=$work/inductor TRITON_CACHE_DIR=$work/inductor/triton
export SERESNET_HUB_CACHE=$work/cache HF_HOME=$work/hf MPLCONFIGDIR=$work/matplotlib
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 HF_HUB_DISABLE_UPDATE_CHECK=1 HF_UPDATE_DOWNLOAD_COUNTS=0
export HF_HUB_DISABLE_XET=1 TOKENIZERS_PARALLELISM=false
python3 -c "import datasets, pyarrow, timm, torch" || stop "python3 cannot import datasets, pyarrow, timm and torch"
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,power.draw --format=csv,noheader ||
    echo "no nvidia-smi"
echo "== $(($(date +%s) - start)) s: parts"
# parts.py ends at the limit; `timeout` is for the case that it cannot.
timeout --kill-after=5 $((limit + 5)) python3 scripts/gpu/parts.py --limit "$limit" --start "$start" --work "$work" --out "$OUT"
rc=$?
echo "== done after $(($(date +%s) - start)) s, exit code $rc"
ls -l "$OUT"
sleep 0.5 # for tee
exit $rc

#!/bin/bash
# Train on Hugging Face Jobs, from this project's folder.
#
#   BUCKET=NS/NAME FLAVOR=l40sx4 scripts/cluster/hf_jobs.sh --recipe NAME --data HUB_ID --output /runs/NAME
#
# A second attempt runs the same command, and goes on from the last state in the bucket. DRY_RUN=1 shows the job alone.
set -eu
: "${BUCKET:?the bucket that keeps the runs: hf buckets create NS/NAME}"

# The folder is mounted read-only, and a build writes beside its sources.
exec hf jobs run ${DRY_RUN:+--dry-run} --detach --name seresnet --flavor "${FLAVOR:-l40sx1}" --timeout "${TIMEOUT:-24h}" \
  --attempts "${ATTEMPTS:-5}" --secrets HF_TOKEN --volume "hf://buckets/$BUCKET:/runs" --volume .:/source \
  "${IMAGE:-python:3.12}" \
  bash -c 'cp -r /source /project && cd /project && pip install --quiet . &&
    exec torchrun --standalone --nproc-per-node=gpu scripts/train.py --resume --stopped-exit-code 75 "$@"' train "$@"

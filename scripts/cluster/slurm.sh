#!/bin/bash
# Train on Slurm. Where a node is lost, or the time limit is reached, the same job is queued again and goes on.
#
#   sbatch --nodes=2 --gpus-per-node=8 scripts/cluster/slurm.sh --recipe NAME --data DIR_OR_HUB_ID --output DIR
#
# Submit it where the environment with this package is active. DIR must be on storage that all nodes share.
#SBATCH --job-name=seresnet
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
# Five minutes before the time limit this script, and not the training, gets a signal.
#SBATCH --signal=B:USR1@300

stopped=
# Every launcher passes it on to its processes, which agree on a step, save their state and end.
trap 'stopped=yes; scancel --signal=USR1 "$SLURM_JOB_ID"' USR1

# The launchers meet at the first node. A port of its own for each job, since nodes may be shared.
address=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
port=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
# So long the launchers wait for their processes to save; its default is 30 seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240
# Else processes that are started again may find the addresses of dead ones (pytorch issue 135712).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# One task a node: a launcher, which starts a process for each GPU, and all of them again where one dies.
# Without SIGUSR1 among its signals the launcher itself would die of it.
srun --ntasks-per-node=1 --kill-on-bad-exit=1 torchrun \
  --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" --max-restarts=3 \
  --rdzv-backend=c10d --rdzv-endpoint="$address:$port" --rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" \
  --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
  scripts/train.py --resume "$@" &
step=$!
# A signal ends `wait`, not the step.
while kill -0 "$step" 2>/dev/null; do wait "$step"; done
wait "$step"
status=$?

# Above 128, a launcher was killed: by the end of its node, or for want of memory. (Where Slurm itself notices that a
# node is gone, or takes nodes away, it queues the job again without this script.)
if [ -n "$stopped" ] || { [ "$status" -gt 128 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; }; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

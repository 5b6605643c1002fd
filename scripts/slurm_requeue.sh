#!/bin/bash
# Train on a SLURM cluster whose jobs are shorter than the training, or may be preempted:
#
#     sbatch scripts/slurm_requeue.sh model=resnet50 ge=theta data=imagenet feed=pack trainer=gpu
#
# Two minutes before its time is over the training gets SIGUSR1, when it is preempted SIGTERM. Either way it finishes its
# step, writes a checkpoint and ends with exit code 75, and this job puts itself back into the queue. Started again it
# goes on from there: the same command is the same run. Any other end is the end; its exit code is the job's.
#
# Adapt the lines below. One process on one device: torchrun would take SIGUSR1 for its end, and hide the exit code.
#
#SBATCH --job-name=geexp
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log

set -u

readonly PREEMPTED=75

# A preempted job's shell gets SIGTERM as well, and would end before it could requeue. With a trap, unlike with an ignored
# signal, which srun and the training would inherit, bash waits for srun first.
trap : TERM USR1

echo "job ${SLURM_JOB_ID:?start this with sbatch}, start $((${SLURM_RESTART_COUNT:-0} + 1)), $(date '+%F %T')"

# Through srun: --signal without B: goes to the job's steps only, and not to what this shell starts by itself.
srun "${PYTHON:-python}" -m geexp.train "$@"
code=$?

# srun passes the exit code on; 128 + n if a signal ended the training (137: killed, often because memory was used up).
# Not everything else is worth a second try: a mistake in the configuration would go round for ever.
if [[ $code -ne $PREEMPTED ]]; then
    exit "$code"
fi
if ! scontrol requeue "$SLURM_JOB_ID"; then
    echo "job $SLURM_JOB_ID cannot be requeued; nothing is lost: submit the same command again" >&2
    exit "$code"
fi

#!/bin/bash
# Makes one cache with 16 tasks of one GPU each: sbatch examples/shared_cache/slurm_array.sh --model qwen-image \
#     --dataset-base-path /shared/photos --output-path /shared/caches/photos
# The tasks need not run at the same time: what is left is done by those that get their turn.
#SBATCH --job-name=dsctl-cache
#SBATCH --array=0-15
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --output=%x-%A-%a.log

set -euo pipefail

exec srun dsctl cache --shared --dataset-num-workers "${SLURM_CPUS_PER_TASK:-8}" "$@"

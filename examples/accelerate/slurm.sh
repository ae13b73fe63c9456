#!/bin/bash
# Trains on 2 nodes of 8 GPUs: sbatch examples/accelerate/slurm.sh train sft --config examples/lora_qwen_image/run.toml
#SBATCH --job-name=dsctl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --signal=TERM@300
#SBATCH --output=%x-%j.log

set -euo pipefail

GPUS="${SLURM_GPUS_ON_NODE:-8}"
CONFIG="${CONFIG:-examples/accelerate/fsdp2.yaml}"
FIRST_NODE="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export FIRST_NODE CONFIG GPUS
export OMP_NUM_THREADS="$((SLURM_CPUS_PER_TASK / GPUS))"

# One launcher a node, each with its own rank; every launcher starts a process for each of its GPUs.
# shellcheck disable=SC2016
exec srun --kill-on-bad-exit=1 bash -c '
    exec accelerate launch \
        --config_file "$CONFIG" \
        --num_machines "$SLURM_NNODES" \
        --num_processes "$((SLURM_NNODES * GPUS))" \
        --machine_rank "$SLURM_NODEID" \
        --main_process_ip "$FIRST_NODE" \
        --main_process_port "${MASTER_PORT:-29500}" \
        -m dsctl "$@"
' dsctl "$@"

#!/usr/bin/env bash
# One training on several nodes under Slurm: sbatch configs/launch/slurm.sh prior/train.py CONFIG
# Preempted or out of time, Slurm sends SIGTERM two minutes before the end: a state is saved, and the requeued job goes on.
#SBATCH --job-name=smalti
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -u
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun bash -c 'exec accelerate launch -q --config_file configs/launch/nodes.yaml --machine_rank "$SLURM_NODEID" \
    --num_machines "$SLURM_NNODES" --num_processes $((SLURM_NNODES * SLURM_GPUS_ON_NODE)) --main_process_ip "$0" "$@"' \
    "$first" "$@"

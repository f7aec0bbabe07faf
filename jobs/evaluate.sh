#!/bin/bash
# Evaluates trained trials: results.json beside each model. The training jobs queue it by themselves; by hand:
#
#   sbatch jobs/evaluate.sh configs/beetles/lora.yaml optim.lr=1e-3,3e-3 seed=0,1
#
#SBATCH --job-name=carabid-evaluate
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=01:00:00
#SBATCH --signal=USR2@120            # two minutes before the walltime: it says that its time was too short
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out           # in the folder where you typed sbatch
#@SBATCH --partition=gpu             # remove the @ to use
#@SBATCH --account=my-account

set -e
# Slurm runs a copy of this file, and from any folder: ask it where the original lies. Keep the file's name, or set jobs.
command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p' | head -n 1)
jobs=${CARABID_JOBS:-$(cd "${command%%evaluate.sh*}" && pwd)}
source "$jobs/setup.sh"

run carabid evaluate "$@"
carabid collect "$@"

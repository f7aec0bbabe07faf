#!/bin/bash
# Extracts the features that the training jobs read; needed once for all of them, and made by them if you skip it.
#
#   sbatch jobs/extract.sh configs/beetles/lora.yaml                  one job
#   sbatch --array=0-3 jobs/extract.sh configs/beetles/lora.yaml      four job tasks share the shards
#
#SBATCH --job-name=carabid-extract
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --signal=USR2@120            # two minutes before the walltime: queue again, go on with the missing shards
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out           # in the folder where you typed sbatch
#@SBATCH --partition=gpu             # remove the @ to use
#@SBATCH --account=my-account

set -e
# Slurm runs a copy of this file, and from any folder: ask it where the original lies. Keep the file's name, or set jobs.
command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p' | head -n 1)
jobs=${CARABID_JOBS:-$(cd "${command%%extract.sh*}" && pwd)}
source "$jobs/setup.sh"

run carabid extract "$@"

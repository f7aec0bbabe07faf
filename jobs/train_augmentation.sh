#!/bin/bash
# The baseline with four augmentations of the cached features (configs/beetles/augmentation.yaml).
#
#   sbatch jobs/train_augmentation.sh                                        one trial, as the YAML says
#   sbatch jobs/train_augmentation.sh optim.lr=1e-3,3e-3 seed=0,1            four trials, one after another
#   sbatch --array=0-3 jobs/train_augmentation.sh optim.lr=1e-3,3e-3 seed=0,1   four trials, shared out to four job tasks
#
# Features are extracted first if they are not there; the evaluation is queued and starts when training has ended.
#SBATCH --job-name=carabid-train-augmentation
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --signal=USR2@120            # two minutes before the walltime: write a checkpoint, queue again, go on from there
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out           # in the folder where you typed sbatch
#@SBATCH --partition=gpu             # remove the @ to use
#@SBATCH --account=my-account

set -e
# Slurm runs a copy of this file, and from any folder: ask it where the original lies. Keep the file's name, or set jobs.
command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p' | head -n 1)
jobs=${CARABID_JOBS:-$(cd "${command%%train_augmentation.sh*}" && pwd)}
source "$jobs/setup.sh"

train_trials configs/beetles/augmentation.yaml "$@"

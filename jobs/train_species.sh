#!/bin/bash
# The last blocks of both towers of BioCLIP-2, tuned together (configs/species/finetune.yaml), or another YAML of configs/species/.
#
#   sbatch jobs/train_species.sh                                    three seeds, one after another, as the YAML says
#   sbatch --array=0-2 jobs/train_species.sh                        the same, shared out to three job tasks
#   sbatch --array=0-5 jobs/train_species.sh optim.lr=1e-5,3e-5     six trials
#   sbatch jobs/train_species.sh lift.yaml                          light tuning instead (configs/species/lift.yaml)
#
# Four GPUs of a node for each trial, which share out its batches (docs/species.md); ask for as much of each as they use:
#
#   sbatch --gpus-per-node=4 --cpus-per-task=16 --mem=128G jobs/train_species.sh train.processes=4
#
# Features are extracted first if they are not there; the evaluation is queued and starts when training has ended.
#SBATCH --job-name=carabid-train-species
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=08:00:00
#SBATCH --signal=USR2@120            # two minutes before the walltime: write a checkpoint, queue again, go on from there
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out           # in the folder where you typed sbatch
#@SBATCH --partition=gpu             # remove the @ to use
#@SBATCH --account=my-account

set -e
# Slurm runs a copy of this file, and from any folder: ask it where the original lies. Keep the file's name, or set jobs.
command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p' | head -n 1)
jobs=${CARABID_JOBS:-$(cd "${command%%train_species.sh*}" && pwd)}
source "$jobs/setup.sh"

method=finetune.yaml
case "${1:-}" in *.yaml) method=$1; shift ;; esac
train_trials "configs/species/$method" "$@"

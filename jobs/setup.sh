# Sourced by every job: edit this one file for your site.
export CARABID_JOBS="$jobs"                     # the folder of these scripts: the evaluation that a training queues is its evaluate.sh
project=$(dirname "$jobs")

# 1. The environment: keep the line that fits, or add your own (`module load …` goes here too).
if [ -f "$project/.venv/bin/activate" ]; then
  source "$project/.venv/bin/activate"          # made by `make demo` or `make test`
elif ! command -v carabid > /dev/null && command -v conda > /dev/null; then
  eval "$(conda shell.bash hook)" && conda activate carabid
fi

# 2. Where features/ and trained/ go; home folders have quotas. Default: the checkout, or ~/carabid where the package is installed.
#    Better set in your shell's profile, which jobs inherit: `carabid status`, `plan`, `results`, `fetch` on the login node look there too.
# export CARABID_ROOT=/scratch/$USER/carabid

# 3. Compute nodes have no internet: use what `carabid fetch` brought into the cache.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"

# Runs a command as a job step. Status 75 means: the walltime is near and a checkpoint is written, queue this job again.
run() {
  local status=0
  srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$@" || status=$?   # what srun runs gets the signal before the walltime
  if [ "$status" -eq 75 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
  fi
  return "$status"
}

# Trains the trials of CONFIG (with the overrides after it) in this job; the job tasks of an array share them out.
train_trials() {
  run carabid extract --once "$@"                     # features: one job makes what is missing, the others wait
  here=""
  carabid evaluate --queue "$@" || here=yes           # the dependent evaluation, queued once for the whole array
  run carabid train "$@"
  if [ -n "$here" ]; then
    echo "The evaluation is not queued, for the reason above: evaluating in this job."
    carabid evaluate "$@"
    carabid collect "$@"
  fi
}

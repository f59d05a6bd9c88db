#!/usr/bin/env bash
# Train on several machines of a Slurm cluster with ZeRO-3: one task per machine, which launches one
# process per GPU. Not run: it needs Slurm and GPUs.
#
#     recipes/dpo/slurm.sh 2 --config recipes/dpo/models/mistral-7b.yaml \
#         --config recipes/dpo/methods/sp2dpo.yaml --dataset dataset/ --output_dir /shared/student
#
# The first argument is the number of machines, the others are passed to `sp2dpo train`. output_dir, the
# data set and reference_cache must be on a file system that all machines share.
#
# Five minutes before the time limit, Slurm sends SIGUSR1 (B: to the job script alone, which passes it
# on to the processes of all machines): they finish their step and save a checkpoint, and the job is
# queued again. The same happens after `scancel --signal=USR1 --batch JOB`. The job resumes from its
# last checkpoint, also if you submit the same command again.
set -euo pipefail

export MACHINES=${1:?how many machines}
shift
export GPUS=${GPUS:-8} # of one machine

sbatch --nodes="$MACHINES" --ntasks-per-node=1 --gpus-per-node="$GPUS" --cpus-per-task=32 \
  --time="${TIME:-12:00:00}" --requeue --signal=B:USR1@300 \
  --job-name=dpo --output=dpo-%j.log --open-mode=append \
  --export=ALL /dev/stdin "$@" <<'JOB'
#!/usr/bin/env bash
export FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export PORT=$((29500 + SLURM_JOB_ID % 1000))
warnings=0
trap 'warnings=$((warnings + 1)); scancel --signal=USR1 "$SLURM_JOB_ID"' USR1
# The command must outlive the signal while it starts; it listens to SIGUSR1 even where it is ignored.
srun --kill-on-bad-exit=1 bash -c '
  trap "" USR1
  exec sp2dpo train --engine zero3-multinode \
    --machines "$MACHINES" --processes "$((MACHINES * GPUS))" \
    --machine-rank "$SLURM_NODEID" --main-process-ip "$FIRST" --main-process-port "$PORT" \
    --resume_from_checkpoint true "$@"' train "$@" &
# A signal ends `wait`, not srun: its status is known when no signal came in between.
while :; do
  before=$warnings
  wait $!
  code=$?
  [ "$before" -eq "$warnings" ] && break
done
if [ "$warnings" -gt 0 ] && [ "$code" -ne 0 ]; then
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
JOB

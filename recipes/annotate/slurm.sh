#!/usr/bin/env bash
# Annotate on a Slurm cluster: an array of tasks, each with one shard of the pairs and its own store,
# then one task that merges the stores. Not run: it needs Slurm and GPUs.
#
#     PAIRS=pairs.jsonl PANEL=panel.yaml FOLDER=/shared/run recipes/annotate/slurm.sh 8
#
# With `serve` in the panel, each task starts its own servers; with `base_url`, all tasks share these
# servers. To resume after a task was killed, run the same command again; a complete store sends no
# requests. FOLDER must support SQLite: a parallel file system with locks, not NFS without them.
set -euo pipefail

shards=${1:?how many shards}
: "${PAIRS:?}" "${PANEL:?}" "${FOLDER:?}"
mkdir -p "$FOLDER"

array=$(sbatch --parsable --array="0-$((shards - 1))" --job-name=annotate \
  --gpus=4 --cpus-per-task=16 --time=12:00:00 --requeue --signal=B:USR1@300 \
  --output="$FOLDER/annotate-%a.log" --open-mode=append --export=ALL,SHARDS="$shards" <<'TASK'
#!/usr/bin/env bash
# Slurm sends SIGUSR1 five minutes before the time limit: in-flight requests finish, the run ends with
# 138, and the task is queued again.
sp2dpo annotate --pairs "$PAIRS" --panel "$PANEL" --serve \
  --shard "$SLURM_ARRAY_TASK_ID/$SHARDS" --store "$FOLDER/shard-$SLURM_ARRAY_TASK_ID.sqlite" &
warnings=0
trap 'warnings=$((warnings + 1)); kill -USR1 $!' USR1
# A signal ends `wait`, not the run: its status is known when no signal came in between.
while :; do
  before=$warnings
  wait $!
  code=$?
  [ "$before" -eq "$warnings" ] && break
done
[ "$code" -ne 138 ] || exec scontrol requeue "$SLURM_JOB_ID"
exit "$code"
TASK
)

sbatch --dependency="afterok:$array" --job-name=merge --output="$FOLDER/merge.log" \
  --export=ALL <<'TASK'
#!/usr/bin/env bash
exec sp2dpo merge --out "$FOLDER/whole.sqlite" "$FOLDER"/shard-*.sqlite
TASK

#!/usr/bin/env bash
# Annotates on a Slurm cluster: an array of tasks, each with a share of the pairs and a store of its
# own, then one task that puts the stores together. Not run: it needs Slurm and GPUs.
#
#     PAIRS=pairs.jsonl PANEL=panel.yaml FOLDER=/shared/run recipes/annotate/slurm.sh 8
#
# The panel says how each task serves its teachers (`serve`), or where they are (`base_url`: all
# tasks then share them). A task that is killed is submitted again by the same sentence: it goes on
# where it was, and a store that is finished asks nothing. FOLDER must take SQLite files: a parallel
# file system with locks, not NFS without them.
set -euo pipefail

shards=${1:?how many shards}
: "${PAIRS:?}" "${PANEL:?}" "${FOLDER:?}"
mkdir -p "$FOLDER"

array=$(sbatch --parsable --array="0-$((shards - 1))" --job-name=annotate \
  --gpus=4 --cpus-per-task=16 --time=12:00:00 --requeue --signal=B:TERM@300 \
  --output="$FOLDER/annotate-%a.log" --open-mode=append --export=ALL,SHARDS="$shards" <<'TASK'
#!/usr/bin/env bash
# Five minutes before its time is over it is told to stop: it takes what is in flight, and ends.
exec sp2dpo annotate --pairs "$PAIRS" --panel "$PANEL" --serve \
  --shard "$SLURM_ARRAY_TASK_ID/$SHARDS" --store "$FOLDER/shard-$SLURM_ARRAY_TASK_ID.sqlite"
TASK
)

sbatch --dependency="afterok:$array" --job-name=merge --output="$FOLDER/merge.log" \
  --export=ALL <<'TASK'
#!/usr/bin/env bash
exec sp2dpo merge --out "$FOLDER/whole.sqlite" "$FOLDER"/shard-*.sqlite
TASK

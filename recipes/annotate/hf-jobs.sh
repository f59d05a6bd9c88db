#!/usr/bin/env bash
# Annotate with Hugging Face Jobs: one job per shard of the pairs, each with its own store in a bucket
# that all jobs mount. Not run: it needs an account that pays for GPUs.
#
#     INPUTS=hf://buckets/me/inputs BUCKET=hf://buckets/me/run recipes/annotate/hf-jobs.sh 4
#
# INPUTS contains pairs.jsonl and panel.yaml; the panel starts its teachers (`serve`) from the
# environment /opt/vllm of IMAGE, in which sp2dpo is installed, too. The store is written to the
# job's local disk, because SQLite needs reliable locks, and copied to the bucket every ten minutes
# and at the end. To resume after a failed job, run the same command again: it starts from that copy.
#
# When all jobs have ended:  sp2dpo merge --out whole.sqlite shard-*.sqlite
set -euo pipefail

shards=${1:?how many shards}
: "${INPUTS:?}" "${BUCKET:?}" "${IMAGE:?an image with sp2dpo, and vLLM in /opt/vllm}"
flavor=${FLAVOR:-a100-large}

task='
store=shard-$SHARD.sqlite
save() {
  rm -f copy.sqlite
  python3 -c "import sqlite3, sys; a, b = map(sqlite3.connect, sys.argv[1:]); a.backup(b)" \
    "$store" copy.sqlite && cp copy.sqlite "/out/$store.part" && mv "/out/$store.part" "/out/$store"
}
cp "/out/$store" . 2> /dev/null || true
sp2dpo annotate --pairs /in/pairs.jsonl --panel /in/panel.yaml --serve \
  --shard "$SHARD/$SHARDS" --store "$store" &
asking=$!
trap "kill -TERM $asking" TERM
while kill -0 "$asking" 2> /dev/null; do
  sleep 600 & pause=$!
  wait -n "$asking" "$pause" || true
  kill "$pause" 2> /dev/null || true
  save
done
status=0
wait "$asking" || status=$?
exit "$status"
'
for ((shard = 0; shard < shards; shard++)); do
  hf jobs run --detach --flavor "$flavor" --timeout 12h --attempts 3 --secrets HF_TOKEN \
    --env SHARD="$shard" --env SHARDS="$shards" \
    --volume "$INPUTS:/in:ro" --volume "$BUCKET:/out:rw" \
    "$IMAGE" bash -c "$task"
done

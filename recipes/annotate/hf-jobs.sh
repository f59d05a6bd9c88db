#!/usr/bin/env bash
# Annotates with Hugging Face Jobs: a job for each share of the pairs, each with a store of its own
# in a bucket that all of them mount. Not run: it needs an account that pays for GPUs.
#
#     INPUTS=hf://buckets/me/inputs BUCKET=hf://buckets/me/run recipes/annotate/hf-jobs.sh 4
#
# INPUTS holds pairs.jsonl and panel.yaml; the panel serves its teachers (`serve`) from the
# environment /opt/vllm of IMAGE, in which sp2dpo is installed, too. The store is written on the
# job's own disk, which SQLite can rely on, and copied to the bucket every ten minutes and at the
# end. A job that failed is run again by the same sentence: it begins with that copy.
#
# When all have ended:  sp2dpo merge --out whole.sqlite shard-*.sqlite
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

#!/usr/bin/env bash
# Train on one machine of Hugging Face Jobs, and push the model to the Hub. Not run: it needs an
# account that pays for GPUs.
#
#     IMAGE=me/sp2dpo BUCKET=hf://buckets/me/run recipes/dpo/hf-jobs.sh \
#         --config recipes/dpo/models/mistral-7b.yaml --config recipes/dpo/methods/sp2dpo.yaml \
#         --dataset org/name --push_to_hub true --hub_model_id me/student
#
# All arguments are passed to `sp2dpo train`. IMAGE has sp2dpo installed with its extra `train`.
# Checkpoints and the reference log-probs are written to BUCKET: to resume after a failed job, run
# the same command with --resume_from_checkpoint true.
set -euo pipefail

: "${IMAGE:?an image with sp2dpo}" "${BUCKET:?a bucket to write to}"

exec hf jobs run --detach --flavor "${FLAVOR:-a100x8}" --timeout "${TIME:-12h}" \
  --secrets HF_TOKEN --volume "$BUCKET:/out" "$IMAGE" bash -c '
    exec sp2dpo train --engine zero3 "$@" \
      --output_dir /out/student --reference_cache /out/reference' train "$@"

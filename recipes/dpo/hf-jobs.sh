#!/usr/bin/env bash
# Train on one machine of Hugging Face Jobs, and push the model to the Hub. Not run: it needs an
# account that pays for GPUs.
#
#     IMAGE=me/sp2dpo BUCKET=hf://buckets/me/run recipes/dpo/hf-jobs.sh \
#         --config recipes/dpo/models/mistral-7b.yaml --config recipes/dpo/methods/sp2dpo.yaml \
#         --dataset org/name --push_to_hub true --hub_model_id me/student
#
# All arguments are passed to train.py. IMAGE has this repository at /sp2dpo with its requirements
# installed. Checkpoints and the reference log-probs are written to BUCKET: to resume after a failed
# job, run the same command with --resume_from_checkpoint true.
set -euo pipefail

: "${IMAGE:?an image with sp2dpo}" "${BUCKET:?a bucket to write to}"

exec hf jobs run --detach --flavor "${FLAVOR:-a100x8}" --timeout "${TIME:-12h}" \
  --secrets HF_TOKEN --volume "$BUCKET:/out" "$IMAGE" bash -c '
    cd /sp2dpo && exec accelerate launch --config_file recipes/accelerate/zero3.yaml \
      recipes/train.py "$@" --output_dir /out/student --reference_cache /out/reference' train "$@"

"""datatrove's inference runner on an address: `python datatrove_runner.py URL BODIES COUNT`.

Its endpoint mode opens a connection for every request where the address is on the same machine.
With `--checkpoints` every answer also goes into its replay database, as a run needs it that is to
be gone on with.
"""

import itertools
import json
import sys
import tempfile
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
from datatrove.pipeline.writers import JsonlWriter
from loguru import logger

IN_FLIGHT = 64


async def rollout(document, generate):
    return await generate(dict(document.metadata["body"]))


def main(url, bodies, count, folder, *, checkpoints):
    documents = (
        Document(text="", id=str(number), metadata={"body": body})
        for number, body in enumerate(itertools.islice(itertools.cycle(bodies), count))
    )
    config = InferenceConfig(
        server_type="endpoint",
        model_name_or_path=bodies[0]["model"],
        endpoint_url=url.removesuffix("/v1"),
        max_concurrent_generations=IN_FLIGHT,
    )
    runner = InferenceRunner(
        rollout_fn=rollout,
        config=config,
        output_writer=JsonlWriter(
            str(folder / "out"), output_filename="${rank}_${chunk_index}.jsonl", compression=None
        ),
        checkpoints_local_dir=str(folder / "checkpoints") if checkpoints else None,
    )
    runner.run(documents)


if __name__ == "__main__":
    logger.remove()
    bodies = [json.loads(line) for line in Path(sys.argv[2]).read_text().splitlines()]
    with tempfile.TemporaryDirectory() as name:
        main(
            sys.argv[1],
            bodies,
            int(sys.argv[3]),
            Path(name),
            checkpoints="--checkpoints" in sys.argv,
        )

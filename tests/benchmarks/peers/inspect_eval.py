"""An evaluation by inspect-ai on an address: `python inspect_eval.py URL BODIES COUNT`.

No scorer, no display, its log in a folder of its own.
"""

import itertools
import json
import sys
import tempfile
from pathlib import Path

from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    ResponseSchema,
    get_model,
)
from inspect_ai.solver import generate

IN_FLIGHT = 64
SPEAKERS = {"system": ChatMessageSystem, "user": ChatMessageUser}


def main(url, bodies, count, folder):
    first_body = bodies[0]
    schema = first_body["response_format"]["json_schema"]
    config = GenerateConfig(
        max_connections=IN_FLIGHT,
        temperature=first_body["temperature"],
        max_tokens=first_body["max_tokens"],
        response_schema=ResponseSchema(name=schema["name"], json_schema=schema["schema"]),
    )
    model = get_model(
        f"openai-api/teacher/{first_body['model']}", base_url=url, api_key="none", config=config
    )
    samples = [
        Sample(input=[SPEAKERS[turn["role"]](content=turn["content"]) for turn in body["messages"]])
        for body in itertools.islice(itertools.cycle(bodies), count)
    ]
    task = Task(dataset=MemoryDataset(samples), solver=generate())
    logs = eval(task, model=model, display="none", log_dir=str(folder), max_samples=IN_FLIGHT)
    assert logs[0].status == "success", logs[0].error


if __name__ == "__main__":
    bodies = [json.loads(line) for line in Path(sys.argv[2]).read_text().splitlines()]
    with tempfile.TemporaryDirectory() as name:
        main(sys.argv[1], bodies, int(sys.argv[3]), Path(name))

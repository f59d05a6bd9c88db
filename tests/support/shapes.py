"""Rows in the columns of well-known preference data sets; every text is invented for these tests.

`SHAPES` maps the name of a shape to a function that returns row n; `write_shape` writes rows to a
file that `sp2dpo annotate --pairs` reads without more options, one usable pair per row unless
`PAIRS_PER_ROW` says otherwise. `prompt_text(n)` and `answers(n)` are the texts of row n, the
preferred answer first.
"""

import json

TOPICS = ("a river", "the moon", "bread", "an old clock", "a bridge", "snow")


def prompt_text(n):
    return f"Write one line about {TOPICS[n % len(TOPICS)]}, number {n}."


def answers(n):
    topic = TOPICS[n % len(TOPICS)]
    return f"Number {n}: {topic} in the morning light.", f"I will not write about {topic}, {n}."


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def orca(n):
    good, bad = answers(n)
    return {
        "system": "You answer in one line.",
        "question": prompt_text(n),
        "chosen": good,
        "rejected": bad,
    }


def ultrafeedback_binarized(n):
    good, bad = answers(n)
    return {
        "prompt": prompt_text(n),
        "prompt_id": f"{n:064x}",
        "chosen": [user(prompt_text(n)), assistant(good)],
        "rejected": [user(prompt_text(n)), assistant(bad)],
        "messages": [user(prompt_text(n)), assistant(good)],
        "score_chosen": 8.0,
        "score_rejected": 3.5,
    }


def ultrafeedback(n):
    good, bad = answers(n)
    items = [("model-a", bad, 3.5), ("model-b", good, 8.0), ("model-c", f"{bad} No.", 2.0)]
    return {
        "source": "invented",
        "instruction": prompt_text(n),
        "models": [name for name, _, _ in items],
        "completions": [
            {
                "model": name,
                "response": text,
                "overall_score": score,
                "critique": "Invented.",
                "annotations": {"helpfulness": {"Rating": "4", "Rationale": "Invented."}},
            }
            for name, text, score in items
        ],
    }


def distilabel(n):
    good, bad = answers(n)
    return {
        "instruction": prompt_text(n),
        "generations": [good, bad],
        "ratings": [4.5, 2.0],
        "chosen": [user(prompt_text(n)), assistant(good)],
        "rejected": [user(prompt_text(n)), assistant(bad)],
        "chosen-rating": 4.5,
        "rejected-rating": 2.0,
    }


def helpsteer3(n):
    good, bad = answers(n)
    return {
        "domain": "general",
        "language": "english",
        "context": [user("Hello."), assistant("Hello!"), user(prompt_text(n))],
        "response1": good if n % 2 else bad,
        "response2": bad if n % 2 else good,
        "overall_preference": -2 if n % 2 else 3,
        "individual_preference": [{"score": -2 if n % 2 else 3, "reasoning": "Invented."}],
    }


def sharegpt(n):
    good, bad = answers(n)
    return {
        "conversations": [{"from": "human", "value": prompt_text(n)}],
        "chosen": {"from": "gpt", "value": good},
        "rejected": {"from": "gpt", "value": bad},
    }


def pku_saferlhf(n):
    good, bad = answers(n)
    return {
        "prompt": prompt_text(n),
        "response_0": good if n % 2 else bad,
        "response_1": bad if n % 2 else good,
        "is_response_0_safe": True,
        "is_response_1_safe": True,
        "better_response_id": 1 - n % 2,
        "safer_response_id": 0,
    }


def nectar(n):
    good, bad = answers(n)
    return {
        "prompt": f"\n\nHuman: {prompt_text(n)}\n\nAssistant: ",
        "answers": [
            {"answer": good, "model": "model-a", "rank": 1.0},
            {"answer": bad, "model": "model-b", "rank": 2.0},
            {"answer": f"{bad} No.", "model": "model-c", "rank": 3.0},
        ],
        "turns": 1,
        "num_responses": 3,
        "source": ["invented"],
        "good_natured": True,
    }


def hh_rlhf(n):
    good, bad = answers(n)
    beginning = f"\n\nHuman: {prompt_text(n)}\n\nAssistant: "
    return {"chosen": beginning + good, "rejected": beginning + bad}


def lmarena(n):
    good, bad = answers(n)
    return {
        "question_id": f"q{n}",
        "model_a": "model-a",
        "model_b": "model-b",
        "winner": "model_a" if n % 2 else "model_b",
        "conversation_a": [user(prompt_text(n)), assistant(good if n % 2 else bad)],
        "conversation_b": [user(prompt_text(n)), assistant(bad if n % 2 else good)],
        "turn": 1,
        "language": "English",
    }


def scored_responses(n):
    good, bad = answers(n)
    return {"prompt": prompt_text(n), "responses": [bad, good], "scores": [0.25, 0.75]}


def messages(n):
    good, bad = answers(n)
    return {
        "messages": [{"role": "system", "content": "One line."}, user(prompt_text(n))],
        "chosen": good,
        "rejected": bad,
    }


def openai(n):
    good, bad = answers(n)
    return {
        "input": {
            "messages": [user(prompt_text(n))],
            "tools": [],
            "parallel_tool_calls": True,
        },
        "preferred_output": [assistant(good)],
        "non_preferred_output": [assistant(bad)],
    }


def tools_as_text(n):
    good, bad = answers(n)
    call = {"name": "write", "arguments": json.dumps({"topic": TOPICS[n % len(TOPICS)]})}
    turn = {"role": "assistant", "content": good, "tool_calls": [{"type": "function"}]}
    turn["tool_calls"][0]["function"] = call
    return {
        "prompt": [user(prompt_text(n))],
        "chosen": [turn],
        "rejected": [assistant(bad)],
        "tools": json.dumps(
            [{"type": "function", "function": {"name": "write", "parameters": {"type": "object"}}}]
        ),
    }


SHAPES = {
    "orca": orca,
    "ultrafeedback_binarized": ultrafeedback_binarized,
    "ultrafeedback": ultrafeedback,
    "distilabel": distilabel,
    "helpsteer3": helpsteer3,
    "sharegpt": sharegpt,
    "pku_saferlhf": pku_saferlhf,
    "nectar": nectar,
    "hh_rlhf": hh_rlhf,
    "lmarena": lmarena,
    "scored_responses": scored_responses,
    "messages": messages,
    "openai": openai,
    "tools_as_text": tools_as_text,
}
PAIRS_PER_ROW = {"ultrafeedback": 2, "nectar": 2}


def write_shape(path, name, rows):
    """Write a JSON Lines file of a shape's rows; the path."""
    path.write_text("".join(json.dumps(SHAPES[name](n)) + "\n" for n in range(rows)))
    return path

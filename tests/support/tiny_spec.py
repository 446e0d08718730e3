"""The spec of a job that trains the tiny model; the model itself needs torch, this does not."""

import json

PROMPT = "{a}{op}{b}="


def tiny_spec(folder_name: str, **changes: object) -> dict[str, object]:
    """A job spec, as JSON, that trains the tiny model in `folder_name` (under a model root) in seconds."""
    spec: dict[str, object] = {
        "name": "tiny",
        "model": {"folder": folder_name},
        "data": {
            "kind": "arithmetic",
            "tasks": [{"operator": "+", "low": 0, "high": 9}],
            "prompt": PROMPT,
        },
        "rollout": {"group_size": 8, "max_new_tokens": 4, "stop": ["\n"]},
        "training": {"steps": 4, "prompts_per_step": 16, "minibatches": 2, "epochs": 2},
        "optimizer": {"learning_rate": 1e-3, "warmup_updates": 3},
        "evaluation": {"every": 2, "problems": 25},
        "checkpoints": {"every": 2},
        "seed": 0,
    }
    return json.loads(json.dumps(spec | changes))

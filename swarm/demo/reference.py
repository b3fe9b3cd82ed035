"""What `transformers` makes of the same prompt: the reference that the demo's output is compared with.

Run in a process of its own, from the model's files alone: ``python -m swarm.demo.reference FOLDER``. It reads one
line of JSON on stdin, ``{"prompt_ids": [...], "max_tokens": n}``, and prints one: ``{"token_ids": [...]}``, greedy,
fp32. Loading happens before the line is read, so that it can be started early.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Load the model, answer one line."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    request = json.loads(sys.stdin.readline())
    prompt = request["prompt_ids"]
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=request["max_tokens"],
            do_sample=False,
        )
    print(json.dumps({"token_ids": output[0, len(prompt) :].tolist()}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Local `transformers`, in a process of its own: ``python -m benchmarks.local_transformers FOLDER``.

Each line on stdin is ``{"prompt_ids", "tokens", "threads"}``; the answer ``{"ids", "times"}``: greedy, fp32, with its
key-value cache, and when each token was there, in seconds on a monotonic clock.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


class Clock:
    """A streamer: `generate` hands it every token as soon as it is known (and the prompt first)."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: object) -> None:
        """One step's tokens."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing more comes."""


def main(folder: Path) -> None:
    """Load the model, answer lines until there are no more."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    for line in sys.stdin:
        question = json.loads(line)
        torch.set_num_threads(question["threads"])
        prompt = torch.tensor([question["prompt_ids"]])
        clock = Clock()
        with torch.inference_mode():
            output = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=question["tokens"],
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                streamer=clock,
            )
        answer = {"ids": output[0, prompt.shape[1] :].tolist(), "times": clock.times[1:]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

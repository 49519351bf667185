"""Loads final/ as a user does who has torch and transformers, but not Lamina."""

import json
from pathlib import Path
from typing import Any

from tests.conftest import Finished, run

CHECK = """
import json, sys, torch, transformers
final, rows, dtype = sys.argv[1:]
def greedy(model, ids):
    return model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12).tolist()
model = transformers.AutoModelForCausalLM.from_pretrained(final, dtype=getattr(torch, dtype))
rows = [json.loads(line) for line in open(rows)]
pairs = [(torch.tensor([r["input_ids"]]), torch.tensor([r["labels"]])) for r in rows]
counts = [(labels[:, 1:] != -100).sum().item() for _, labels in pairs]
losses = [model(input_ids=ids, labels=labels).loss.item() for ids, labels in pairs]
assert "lamina" not in sys.modules
print(json.dumps({
    "loss": sum(n * loss for n, loss in zip(counts, losses)) / sum(counts),
    "layers": model.config.num_hidden_layers,
    "stack": sum(name.endswith("self_attn") for name, _ in model.named_modules()),
    "answers": [greedy(model, row["input_ids"][:12]) for row in rows[:5]],
}))
"""


def loaded(finished: Finished, final: Path, dtype: str | None = None) -> dict[str, Any]:
    """What a script with only torch and transformers finds in a final/."""
    arguments = (final, finished.folder / "eval.jsonl", dtype or finished.result["dtype"])
    done = run("-c", CHECK, *arguments, cwd=final.parent, imports="transformers")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])

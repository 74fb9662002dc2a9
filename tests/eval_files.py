"""Small task files in lm-eval's own format, and a published model, for the tests of evaluations."""

from __future__ import annotations

import json
from pathlib import Path

from small_runs import with_small_corpus

CAPITALS = [
    {"question": "The capital of France is", "choices": ["Paris", "Rome!", "Tokyo"], "answer": 0},
    {"question": "The capital of Italy is", "choices": ["Paris", "Rome!", "Tokyo"], "answer": 1},
    {"question": "The capital of Japan is ", "choices": ["Paris", "Rome!", "Tokyo"], "answer": 2},
    {"question": "The capital of France, again, is", "choices": ["Paris", "Rome!", "Tokyo"], "answer": 0},
]
LENGTHS = [{**one, "choices": ["a", "bb", "a choice of many more letters"]} for one in CAPITALS]
LENGTHS[2] |= {"question": "A space here would count as a token of the answer"}
CHOICES = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {name}.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_target: answer
doc_to_choice: choices
target_delimiter: "{delimiter}"
metric_list:
  - metric: acc
  - metric: acc_norm
metadata:
  version: 1.5
"""
TEXTS = """
task: texts
dataset_path: json
dataset_kwargs:
  data_files: {test: texts.jsonl}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list:
  - metric: bits_per_byte
metadata:
  version: 1
"""
ANSWERS = """
task: answers
dataset_path: json
dataset_kwargs:
  data_files: {test: texts.jsonl}
test_split: test
output_type: generate_until
doc_to_text: start
doc_to_target: text
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 12
metric_list:
  - metric: exact_match
metadata:
  version: 1
"""
LONG = ANSWERS.replace("task: answers", "task: long").replace("max_gen_toks: 12", "max_gen_toks: 64")
NO_DATA = CHOICES.format(name="no_data", delimiter=" ").replace("no_data.jsonl", "not_there.jsonl")


def write_tasks(folder: Path, text: str) -> None:
    """The folder ``tasks``, with questions, documents cut from ``text``, and a task without its data."""
    tasks = folder / "tasks"
    tasks.mkdir()
    for name, questions in {"capitals": CAPITALS, "lengths": LENGTHS}.items():
        (tasks / f"{name}.yaml").write_text(CHOICES.format(name=name, delimiter=" " if name == "capitals" else ""))
        (tasks / f"{name}.jsonl").write_text("\n".join(map(json.dumps, questions)))
    documents = [
        {"text": text[at : at + size], "start": text[at : at + 9]} for at, size in ((0, 7), (99, 32), (500, 301))
    ]
    (tasks / "texts.jsonl").write_text("\n".join(map(json.dumps, documents)))
    for name, content in {"texts": TEXTS, "answers": ANSWERS, "long": LONG, "no_data": NO_DATA}.items():
        (tasks / f"{name}.yaml").write_text(content)


def write_published(place: Path) -> Path:
    """A llama of random weights as transformers saves it, whose tokenizer puts ``<s>`` before texts; its folder."""
    import tokenizers
    import torch
    import transformers
    from tokenizers import models, pre_tokenizers, processors, trainers

    text = (with_small_corpus(place) / "small.txt").read_text()
    one = tokenizers.Tokenizer(models.BPE())
    one.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    one.train_from_iterator([text], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    one.add_special_tokens(["<s>"])
    one.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", one.token_to_id("<s>"))]
    )
    folder = place / "published"
    transformers.PreTrainedTokenizerFast(tokenizer_object=one, bos_token="<s>", eos_token="<s>").save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=one.get_vocab_size(), max_position_embeddings=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, hidden_size=32, intermediate_size=64, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder

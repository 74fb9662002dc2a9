"""Command lines that cannot be honoured: the exit code of each, and the culprit that standard error has to name."""

from __future__ import annotations

import json
from pathlib import Path

REFERENCE = Path(__file__).parents[2] / "results" / "reference"

LLAMA = json.dumps({
    "model_type": "llama", "vocab_size": 4, "hidden_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1,
    "intermediate_size": 2, "max_position_embeddings": 64,
})  # fmt: skip
_HEADER = b'{"lm_head.weight": {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 32]}}'
WEIGHTS = (len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(32)).decode()
"""A safetensors file of one tensor, all of it ASCII."""


def _tokenizer(words: str) -> str:
    vocabulary = {word: number for number, word in enumerate(words)}
    return json.dumps({
        "version": "1.0", "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "a"},
    })  # fmt: skip


FILES = {
    "broken.py": "import no_such_module\n",
    "hookless.py": "x = 1\n",
    "text.txt": "not TOML",
    "unknown_field.toml": 'architecture = "gpt1"\nprofil = "smoke"\n',
    "wrong_value.toml": 'architecture = "gpt1"\n\n[training]\nbatch_size = 0\n',
    "damaged.parquet": "PAR1 and no more",
    "gift.toml": 'architecture = "gpt1"\nplugins = ["hookless.py"]\n',
    "empty.txt": "",
    "hf/unknown.json": '{"model_type": "no_such_kind"}',
    "hf/untyped.json": '{"hidden_size": 3}',
    "hf/damaged.json": '{"model_type": "llama"',
    "hf/coded.json": '{"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}',
    "hf/bare/model.safetensors": WEIGHTS,
    "hf/pickle/config.json": LLAMA,
    "hf/pickle/pytorch_model.bin": "",
    "hf/cut/config.json": LLAMA,
    "hf/cut/model.safetensors": WEIGHTS[:20],
    "hf/no-index/config.json": LLAMA,
    "hf/no-index/model.safetensors.index.json": '{"weight_map": {',
    "hf/no-shard/config.json": LLAMA,
    "hf/no-shard/model.safetensors.index.json": '{"weight_map": {"lm_head.weight": "gone.safetensors"}}',
    "hf/wide/config.json": LLAMA.replace('"vocab_size": 4', '"vocab_size": 5'),
    "hf/wide/model.safetensors": WEIGHTS,
    "hf/words/config.json": LLAMA,
    "hf/words/model.safetensors": WEIGHTS,
    "hf/words/tokenizer.json": _tokenizer("abcdefgh"),
    "hf/three.json": _tokenizer("abc"),
}  # fmt: skip
"""Bad input, in the folder in which the commands run."""

CATALOGUE: tuple[tuple[str, int, str], ...] = (
    # no command, option or argument of that kind
    ("lst", 2, "'lst'"),
    ("list --jsn", 2, "--jsn"),
    ("show", 2, "architecture"),
    ("results --limit many", 2, "--limit"),
    ("compare gpt1 llama --seeds 1", 2, "--seeds"),
    ("probe gpt1 --seeds 0", 2, "--seeds"),
    ("generate gpt1 --max-new-tokens 0", 2, "--max-new-tokens"),
    ("check gpt1 --limit 0", 2, "--limit"),
    ("regress HEAD", 2, "HEAD_REV"),
    # names
    ("run", 2, "archbench run"),
    ("run lama --device cpu --profile smoke", 2, "'lama'"),
    ("run gpt1 --device cpu --profile smok", 2, "'smok'"),
    ("run gpt1 --device cpu --profile smoke --preset nanno", 2, "'nanno'"),
    ("run gpt1 --device cpu --profile smoke --track tensorbord", 2, "tensorbord"),
    ("show lama", 2, "'lama'"),
    ("show gpt1 --preset nanno", 2, "'nanno'"),
    ("check lama --quiet", 2, "'lama'"),
    ("new gpt1", 2, "gpt1"),
    ("clean --only result", 2, "'result'"),
    ("fsck nowhere", 7, "nowhere"),
    ("rm", 2, "archbench rm"),
    ("diff 20261101T100000-aaaaaa", 2, "RUN"),
    ("diff 20261101T100000-aaaaaa 20261101T100000-aaaaab", 2, "20261101T100000-aaaaaa"),
    ("diff damaged.parquet damaged.parquet", 7, "damaged.parquet"),
    ("open nowhere", 2, "nowhere"),
    ("open damaged.parquet --no-browser", 7, "damaged.parquet"),
    ("plot loss damaged.parquet", 7, "damaged.parquet"),
    ("plot loss --by architectur", 2, "architectur"),
    ("rm 20261101T100000-aaaaaa", 2, "20261101T100000-aaaaaa"),
    ("rm damaged.parquet", 2, "damaged.parquet"),
    ("where --plugin absent.py", 2, "absent.py"),
    ("results --deep", 2, "--deep"),
    ("probe gpt1 --jobs 1" + 400 * "0", 2, "--jobs"),
    ("trust absent.py", 2, "absent.py"),
    ("run --device cpu --file gift.toml", 12, "hookless.py"),
    ("new My_Arch", 2, "My_Arch"),
    ("new my-arch --from lama", 2, "lama"),
    ("probe", 2, "archbench probe"),
    ("probe gpt1 --device cpu --task recal", 2, "'recal'"),
    ("compare gpt1 lama --device cpu --quiet", 2, "'lama'"),
    ("scale", 2, "archbench scale"),
    ("scale lama --device cpu --quiet", 2, "'lama'"),
    # fields of a configuration
    ("run gpt1 --device cpu --set n_layers=2 --profile smoke", 2, "n_layers"),
    ("run gpt1 --device cpu --set n_layer --profile smoke", 2, "--set n_layer"),
    ("run gpt1 --device cpu --set n_layer=two --profile smoke", 2, "n_layer"),
    ("run gpt1 --device cpu --config training.schedul=wsd", 2, "schedul"),
    ("run gpt1 --device cpu --config training.schedule=linear", 2, "schedule"),
    ("run gpt1 --device cpu --config dtype.more=1", 2, "dtype.more"),
    ("run gpt1 --device cpu --dtype float64", 2, "dtype"),
    ("run gpt1 --device cpu --phases train,speed", 2, "phases"),
    ("run gpt1 --device cpu --optimizer adamax", 2, "optimizer"),
    ("run gpt1 --device cpu --tokens 100 --steps 2", 2, "tokens and steps"),
    ("run gpt1 --device cpu --lr -1", 2, "learning_rate"),
    ("run --device cpu --file absent.toml", 2, "absent.toml"),
    ("run --device cpu --file text.txt", 2, "text.txt"),
    ("run --device cpu --file unknown_field.toml", 2, "profil"),
    ("run --device cpu --file wrong_value.toml", 2, "batch_size"),
    ("show gpt1 --set n_layer=0", 2, "n_layer"),
    ("run gpt1 --resume last --steps 3", 2, "--steps"),
    ("run --resume last", 2, "--resume"),
    ("run gpt1 llama --resume last", 2, "--resume"),
    # plans of studies
    ("compare gpt1", 2, "archbench compare gpt1"),
    ("compare gpt1 gpt1 --device cpu --quiet", 2, "'gpt1'"),
    ("compare gpt1 llama --device cpu --baseline lama", 2, "'lama'"),
    ("compare gpt1 llama --device cpu --match size", 2, "match"),
    ("compare gpt1 llama --device cpu --match time --jobs 2", 2, "jobs"),
    ("compare gpt1 llama --device cpu --margin 200", 2, "margin"),
    ("compare gpt1 llama --device cpu --contexts 1,x", 2, "--contexts 1,x"),
    ("compare gpt1 llama --device cpu --config seed=3", 2, "--config seed"),
    ("compare gpt1 llama --device cpu --config training.seconds=3", 2, "training.seconds"),
    ("scale gpt1 --device cpu --sizes 10k,ten", 2, "--sizes"),
    ("scale gpt1 --device cpu --budgets 10k,10k", 2, "10000"),
    ("scale gpt1 --device cpu --config training.tokens=3", 2, "--config training.tokens"),
    ("scale gpt1 --device cpu --budgets 10 --sizes 25k --quiet", 2, "10 tokens"),
    ("probe gpt1 --device cpu --set n_layer", 2, "--set n_layer"),
    # plugins
    ("show gpt1 --plugin absent.py", 2, "absent.py"),
    ("show broken --plugin broken.py", 3, "broken.py"),
    ("show hookless --plugin hookless.py", 3, "hookless.py"),
    # models of transformers
    ("show hf:absent", 2, "hf:absent"),
    ("show hf:absent@0123456789ab", 2, "absent@0123456789ab"),
    ("show hf:hf/unknown.json", 6, "'no_such_kind'"),
    ("check hf:hf/untyped.json --quiet", 6, "untyped.json"),
    ("run hf:hf/damaged.json --device cpu --profile smoke", 6, "damaged.json"),
    ("compare gpt1 hf:hf/coded.json --device cpu", 6, "auto_map"),
    ("probe hf:hf/bare --device cpu", 6, "config.json"),
    ("run hf:hf/pickle --device cpu --profile smoke", 6, "pytorch_model.bin"),
    ("run hf:hf/cut --device cpu --profile smoke", 6, "model.safetensors"),
    (
        "run hf:hf/no-index --device cpu --profile smoke --tokenizer file:hf/three.json",
        6,
        "model.safetensors.index.json",
    ),
    ("run hf:hf/no-shard --device cpu --profile smoke --tokenizer file:hf/three.json", 6, "gone.safetensors"),
    ("scale hf:hf/wide --device cpu", 6, "vocab_size is 5"),
    ("run hf:hf/words --device cpu --profile smoke", 2, "9 ids"),
    # devices
    ("run gpt1 --device tpu", 5, "tpu"),
    ("run gpt1 --device cuda:99", 5, "cuda:99"),
    ("check gpt1 --device cuda:99", 5, "cuda:99"),
    ("run gpt1 --device cpu --profile smoke --attention triton", 5, "triton"),
    ("kernels --device cuda:99", 5, "cuda:99"),
    # data
    ("run gpt1 --device cpu --profile smoke --corpus absent.txt", 4, "absent.txt"),
    ("run gpt1 --device cpu --profile smoke --corpus empty.txt", 4, "empty.txt"),
    ("run gpt1 --device cpu --profile smoke --tokenizer bpe:x", 2, "bpe:x"),
    ("run gpt1 --device cpu --profile smoke --tokenizer file:absent.json", 4, "absent.json"),
    ("run gpt1 --device cpu --weights absent --tokenizer byte", 2, "absent"),
    # checks
    ("check gpt1 --check causalty --quiet", 2, "causalty"),
    ("check gpt1 --xfail flops --quiet", 2, "--xfail flops"),
    ("check gpt1 --set n_layer --quiet", 2, "--set n_layer"),
    # kernels
    ("kernels --device cpu --lengths 0", 2, "--lengths 0"),
    ("kernels --device cpu --lengths 64,x", 2, "'x'"),
    ("kernels --device cpu --losses 64x32", 2, "--losses 64x32"),
    ("kernels --device cpu --backends trition", 2, "trition"),
    ("kernels --device cpu --head-widths 8", 2, "--head-widths 8"),
    ("kernels --device cpu --heads 3 --groups 2", 2, "2"),
    ("kernels --device cpu --chip sm_90", 2, "--chip"),
    ("kernels --static --repeats 3", 2, "--repeats"),
    # results that are not there, or damaged
    ("results damaged.parquet", 7, "damaged.parquet"),
    ("results --where phse=train REFERENCE/probe-mini/runs.parquet", 2, "phse"),
    ("results --where phase=trian REFERENCE/probe-mini/runs.parquet", 2, "phase=trian"),
    ("results --where phase REFERENCE/probe-mini/runs.parquet", 2, "phase"),
    ("results REFERENCE/probe-mini/runs.parquet --csv absent/table.csv", 7, "absent/table.csv"),
    ("report absent", 7, "absent"),
    ("report damaged.parquet", 7, "damaged.parquet"),
    ("generate gpt1", 2, "results"),
    ("generate gpt1 --prompt a --prompt-file empty.txt", 2, "--prompt"),
    ("generate gpt1 --prompt-file absent.txt", 4, "absent.txt"),
    ("run gpt1 --resume last", 2, "results"),
    ("run gpt1 --resume 20200101T000000-abcdef", 2, "20200101T000000-abcdef"),
    ("regress HEAD absent-revision", 2, "git"),
)

"""Before the first phase: check what can be checked, and resolve what the configuration leaves open."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from archbench.config import ModelConfig, RunConfig
from archbench.data.batches import BatchSampler
from archbench.data.corpora import EMBEDDED
from archbench.data.dataset import Dataset, prepare
from archbench.data.request_trace import read_trace, trace_key
from archbench.errors import CheckpointError, ConfigError
from archbench.measure.energy import idle_watts
from archbench.measure.machine import describe, versions
from archbench.plugin.architecture import Architecture
from archbench.plugin.discovery import plugin_paths
from archbench.plugin.registry import code_of, load
from archbench.plugin.trust import vouch
from archbench.results.schema import Role
from archbench.results.store import new_run_id, prepare_folder
from archbench.runs.device import check_attention, check_dtype, check_float8, resolve_device
from archbench.runs.folder import RunFolder
from archbench.runs.ranks import resolved_ranks
from archbench.runs.weights_config import resolve_published
from archbench.training.weights import digest_of, require_whole, sampled_digest

LONGEST_USUAL_CONTEXT = 2048
MOST_TOKENS_SERVED = 250_000
"""Of all requests, passes and batches of a run: each is a row, and a phase's rows are read as a whole."""
LOGITS_AT_ONCE = 1 << 30
"""Most logits of the windows that are scored together: 4 GiB in float32."""


def start(config: RunConfig, role: Role | None = None, digits: str | None = None) -> RunFolder:
    """Check a run, resolve what its configuration leaves open, and make its folder.

    Args:
        role: what a study runs it for.
        digits: the end of the run's id; None for random ones.

    Raises:
        ArchbenchError: plugin, configuration, data, device or output folder cannot be used.
    """
    device = resolve_device(config.device)
    check_dtype(config, device)
    check_float8(config, device)
    check_attention(config, device)
    # First what depends on which fields the user has set: a changed copy has all of them set.
    config = _with_absolute_paths(_with_text_to_score(config))
    config = resolved_ranks(config)
    prepare_folder(config.out)
    architecture = load(config.architecture, config.plugins)
    vouch([*architecture.files, *code_of(architecture.name)])
    # This run's processes load no other plugin's code; what a source finds is named by its content.
    config = config.override(architecture=architecture.name, plugins=architecture.files)
    config, published = resolve_published(config, architecture)
    if config.weights is not None:
        require_whole(Path(config.weights))
        _require_named_weights(architecture, Path(config.weights))
    data = prepare(config.data)
    model_config = _resolve_model(config, architecture, data, published)
    config = config.override(
        speed=_resolve_speed(config, model_config, len(data.train)), quality=_resolve_quality(config, model_config)
    )
    if "train" in config.phases:  # raises if the text is too short
        BatchSampler(data.train, batch_size=1, context_length=model_config.context_length, seed=0)

    folder = RunFolder(
        path=Path(config.out) / new_run_id(config.out, digits=digits),
        config=config,
        model=model_config.model_dump(mode="json"),
        facts={
            "plugin_package": architecture.package,
            "plugin_version": architecture.version,
            "plugin_revision": architecture.revision(),
            "role": role,
            "wrappers": list(architecture.wrappers),
            "weights_sha256": None if config.weights is None else digest_of(Path(config.weights)),
            "corpus": data.corpus.name,
            "corpus_sha256": data.corpus.sha256,
            "scored": data.corpus.held_out,
            "tokenizer": data.tokenizer.name,
            "lossless": data.lossless,
            **_trace_facts(config, model_config),
            "versions": versions(),
            "machine": describe(config.device),
            **({} if (idle := idle_watts(config.device)) is None else {"idle_watts": idle}),
        },
    )
    folder.create(data.tokenizer.save)
    return folder


def _require_named_weights(architecture: Architecture, weights: Path) -> None:
    """Refuse weights that have changed since their place was named: the architecture's name would be another's.

    Raises:
        CheckpointError: they have.
    """
    same = architecture.weights is not None and weights.resolve() == architecture.weights.resolve()
    if same and architecture.sample not in (None, sampled_digest(weights)):
        cause = f"the weights in {weights} have changed since they were given that name"
        raise CheckpointError(architecture.name, cause, "Name their place again")


def _with_text_to_score(config: RunConfig) -> RunConfig:
    """Of a text of one's own, published weights are scored on the whole, unless they are trained or a share is given.

    Raises:
        ConfigError: the text would be trained on and scored.
    """
    data, trained = config.data, "train" in config.phases
    if trained and data.validation_fraction == 1:
        step = "Give a share below 1, or --phases without train"
        raise ConfigError("data.validation_fraction", "nothing would be left to train on", step)
    mine = data.corpus not in EMBEDDED and not data.corpus.startswith("hf:")
    if trained or config.weights is None or not mine or "validation_fraction" in data.model_fields_set:
        return config
    return config.override(data=data.override(validation_fraction=1))


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """The configuration for child processes and later sessions, which may start in another folder.

    A link that leads to itself stays as it is, and is named when it is read.
    """
    corpus, tokenizer = config.data.corpus, config.data.tokenizer
    if corpus not in EMBEDDED and not corpus.startswith("hf:"):
        corpus = os.path.realpath(corpus)
    kind, colon, place = tokenizer.partition(":")
    if kind in ("file", "gguf", "saved"):
        tokenizer = kind + colon + os.path.realpath(place)
    return config.override(
        plugins=plugin_paths(config.plugins),
        weights=None if config.weights is None else os.path.realpath(config.weights),
        data=config.data.override(corpus=corpus, tokenizer=tokenizer),
        speed=config.speed.override(trace=config.speed.trace and os.path.realpath(config.speed.trace)),
    )


def _resolve_model(
    config: RunConfig, architecture: Architecture, data: Dataset, published: ModelConfig | None
) -> ModelConfig:
    """The model's configuration, with the tokenizer's V or the preset's, as ``vocabulary`` says.

    Raises:
        ConfigError: an unknown preset or field, a bad value, or a vocabulary smaller than the tokenizer's.
    """
    overrides = dict(config.overrides)
    if config.vocabulary == "tokenizer":
        overrides.setdefault("vocab_size", data.tokenizer.vocab_size)
    model_config = architecture.config(config.preset if published is None else published, **overrides)
    if model_config.vocab_size < data.tokenizer.vocab_size:
        raise ConfigError(
            f"vocab_size {model_config.vocab_size} of {config.architecture}",
            f"tokenizer {data.tokenizer.name} has {data.tokenizer.vocab_size} ids",
            "Use a smaller tokenizer (--tokenizer bpe:N), or leave vocab_size out",
        )
    return model_config


def _resolve_speed(config: RunConfig, model_config: ModelConfig, n_tokens: int) -> dict[str, Any]:
    """Prompt lengths, by default a quarter and three quarters of the context, or less to leave room for new tokens.

    Prompts are cut from the ``n_tokens`` of the training text. Contexts count as at most 2,048: prompts for a
    published model's 8,192 would take hours on a CPU.
    """
    T = min(model_config.context_length, n_tokens)
    speed = dict(config.speed)
    if speed["prompt_lengths"] is None:
        usual = min(T, LONGEST_USUAL_CONTEXT)
        longest = max(1, usual - speed["new_tokens"])
        speed["prompt_lengths"] = tuple(sorted({max(1, min(P, longest)) for P in (usual // 4, 3 * usual // 4)}))
    too_long = [P for P in speed["prompt_lengths"] if P > T]
    if too_long and {"prefill", "decode"} & set(config.phases):
        room = f"a context of {T}" if model_config.context_length == T else f"the training text of {T}"
        raise ConfigError(
            "speed.prompt_lengths",
            f"a prompt of {too_long[0]} tokens does not fit {room}",
            f"Give lengths of at most {T}",
        )
    if "serve" in config.phases and config.speed.trace is None:
        longest, new = max(speed["prompt_lengths"], default=0), speed["new_tokens"]
        if longest + new > T:
            raise ConfigError(
                "speed.prompt_lengths",
                f"a prompt of {longest} tokens and {new} new ones do not fit a context of {T}",
                "Give shorter prompts, fewer new tokens (--new), or a longer context (--set context_length=N)",
            )
        _bound_rows(config, sum(config.speed.batch_sizes) * len(speed["prompt_lengths"]) * new)
    return speed


def _bound_rows(config: RunConfig, tokens: int) -> None:
    """Refuse to serve so many tokens in each pass that their rows could not be read again."""
    if (rows := tokens * config.speed.repeats) > MOST_TOKENS_SERVED:
        cause = f"{rows:,} tokens would be served, each of which is a row"
        step = f"Serve at most {MOST_TOKENS_SERVED:,}: fewer --repeats, --batch or --new, or a shorter trace"
        raise ConfigError("speed.repeats", cause, step)


def _trace_facts(config: RunConfig, model_config: ModelConfig) -> dict[str, str]:
    """What the trace asks for, as a hash: a resumed run serves the same.

    Raises:
        DataError: see :func:`read_trace`.
    """
    if config.speed.trace is None or "serve" not in config.phases:
        return {}
    requests = read_trace(config.speed.trace, model_config.context_length)
    _bound_rows(config, len(config.speed.batch_sizes) * sum(one.output_tokens for one in requests))
    return {"trace": trace_key(requests)}


def _resolve_quality(config: RunConfig, model_config: ModelConfig) -> dict[str, Any]:
    """The number of windows scored together, so that their logits fit; it changes no score."""
    logits = model_config.context_length * model_config.vocab_size
    batch_size = max(1, min(config.quality.batch_size, LOGITS_AT_ONCE // logits))
    return {**dict(config.quality), "batch_size": batch_size}

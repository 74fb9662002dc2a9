"""Configurations: frozen, validated, a unit on every field. No torch here.

Plugins subclass :class:`ModelConfig`. :class:`RunConfig` is everything one run depends on; it is frozen before the run
starts and stored beside its rows.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator
from pydantic.fields import FieldInfo

from archbench import bounds
from archbench.errors import ConfigError, UnknownNameError, UsageError, did_you_mean
from archbench.profiles import PROFILES, filled

PhaseName = Literal["train", "quality", "positions", "prefill", "decode", "serve"]
"""Each has a function in ``PHASES`` of ``archbench/runs/worker.py``, and its metrics in ``results/metrics.py``."""
DTypeName = Literal["float32", "bfloat16", "float16"]
BackendName = Literal[
    "triton", "sdpa", "sdpa-cudnn", "sdpa-flash", "sdpa-efficient", "sdpa-math", "flex", "blocks", "reference"
]
OperationName = Literal["attention", "loss"]
Float8Name = Literal["none", "head", "all"]
SamplingName = Literal["epochs", "random"]
ParallelName = Literal["ddp", "fsdp"]
DecodingName = Literal["eager", "graph", "static"]
BudgetUnit = Literal["tokens", "steps", "flops", "seconds"]

BUDGETS: tuple[BudgetUnit, ...] = ("tokens", "steps", "flops", "seconds")
"""The fields of :class:`TrainingConfig` that set a budget."""

PUBLISHED = "published"
"""The preset of a run whose weights bring their own configuration; the run adds the model's name."""


class Frozen(BaseModel):
    """A frozen configuration whose errors have culprit, cause and next step."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise config_error(type(self), error) from None

    def override(self, **values: Any) -> Self:
        """A validated copy with some fields replaced; strings are parsed (``n_layer="6"``).

        Raises:
            ConfigError: unknown field, wrong type, or a value out of range.
        """
        return type(self)(**{**dict(self), **values})


class ModelConfig(Frozen):
    """Base of every architecture's configuration. Subclass it, and give each field a unit in its description."""

    vocab_size: int = Field(gt=0, description="V, number of token ids")
    context_length: int = Field(gt=0, description="T, positions the model is trained on, and the most it reads at once")

    @model_validator(mode="after")
    def _of_this_world(self) -> Self:
        for name, value in self:
            most = bounds.DEEPEST if name == "n_layer" else bounds.LARGEST
            if isinstance(value, int) and abs(value) > most:
                raise ConfigError(f"{type(self).__name__}.{name}", f"it is more than {most:,}", "Give less")
        return self


class DataConfig(Frozen):
    """The text, and how it becomes tokens."""

    corpus: str = Field(description="text: shakespeare, python, file, folder, hf:NAME[:CONFIG], shards (DIR, '*.bin')")
    tokenizer: str = Field(description="tokenizer: byte, bpe:N, file:tokenizer.json, gguf:FILE, hf:NAME, ids:V")
    validation_fraction: float = Field(
        0.1, gt=0, le=1,
        description="share of bytes held out where the corpus has no split of its own; 1: all, if nothing is trained",
    )  # fmt: skip


class TrainingConfig(Frozen):
    """One training recipe; the same for every architecture. Exactly one budget is set."""

    tokens: bounds.Tokens | None = Field(None, description="budget: training tokens")
    steps: bounds.Updates | None = Field(None, description="budget: optimizer updates")
    flops: float | None = Field(None, gt=0, le=1e30, description="budget: model FLOPs, forward and backward")
    seconds: float | None = Field(
        None, gt=0, le=10**9, description="budget: seconds of training steps, without validation and checkpoints"
    )
    batch_size: bounds.Sequences = Field(description="B, sequences per micro-batch")
    accumulation: int = Field(1, gt=0, le=10**6, description="micro-batches per optimizer update")
    sampling: SamplingName = Field(
        "epochs",
        description="order of the text; epochs: each block of T tokens once an epoch, random: blocks from anywhere",
    )
    optimizer: Literal["adamw", "adam", "sgd", "muon"] = Field("adamw", description="optimizer, from torch.optim")
    learning_rate: bounds.Factor = Field(description="peak learning rate")
    betas: tuple[bounds.Share, bounds.Share] = Field(
        (0.9, 0.95), description="Adam's moment decays; the first is the momentum of SGD and Muon"
    )
    eps: float = Field(1e-8, gt=0, le=1, description="added to Adam's denominator")
    weight_decay: float = Field(
        0.1, ge=0, le=10**6,
        description="decoupled weight decay, of parameters with two or more dimensions (not of biases and gains)",
    )  # fmt: skip
    grad_clip: float | None = Field(1.0, gt=0, le=10**9, description="largest global gradient norm; null for none")
    schedule: Literal["cosine", "wsd", "constant"] = Field(
        "cosine", description="learning-rate schedule after the warm-up; wsd is warm-up, stable, decay"
    )
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="share of the budget spent in linear warm-up")
    decay_fraction: float = Field(0.2, gt=0, le=1, description="share of the budget spent in the decay of wsd")
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="final learning rate / peak")
    validate_every: bounds.Updates | None = Field(
        None, description="optimizer updates between validations; null for none before the end"
    )
    checkpoint_every: bounds.Updates | None = Field(
        None, description="optimizer updates between checkpoints; null for one at the end"
    )

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        budgets = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(budgets) != 1:
            cause = f"{' and '.join(budgets) or 'none'} given as the budget"
            raise ConfigError("TrainingConfig", cause, "Set exactly one of tokens, steps, flops and seconds")
        return self


class QualityConfig(Frozen):
    """How held-out text is scored: rolling windows, each token scored once."""

    stride: bounds.Size | None = Field(
        None, description="tokens scored per window; null for the whole context (lm-evaluation-harness's default)"
    )
    batch_size: bounds.Sequences = Field(
        8, description="windows scored at a time; fewer where their logits would exceed 4 GiB"
    )


class SpeedConfig(Frozen):
    """What the prefill, decode and serve phases time."""

    prompt_lengths: tuple[bounds.Size, ...] | None = Field(
        None, max_length=1000,
        description="P, prompt tokens, each at most the context; null for a quarter and three quarters of it "
        "(of 2048, where it is longer), or less to leave room for new_tokens",
    )  # fmt: skip
    batch_sizes: tuple[bounds.Sequences, ...] = Field((1,), max_length=1000, description="B, sequences at a time")
    new_tokens: int = Field(32, gt=1, le=2**24, description="tokens decoded per repeat, the first one untimed")
    repeats: bounds.Repeats = Field(5, description="timed repeats of each case, after warm-up")
    warmup: bounds.Untimed = Field(2, description="untimed repeats, at the least; more until the times are stationary")
    trace: str | None = Field(None, description="requests to serve, JSON lines or CSV; null for batches that meet")
    trained: str | None = Field(None, description="folder of the run whose weights are timed; null for this run's own")
    decoding: DecodingName | None = Field(None, description="steps of serve; null for graph on a GPU, eager elsewhere")

    @model_serializer(mode="wrap")
    def _as_before(self, written: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Null fields that earlier runs lacked are left out, so that their hashes, plans and keys stay."""
        return {name: one for name, one in written(self).items() if one is not None or name == "prompt_lengths"}


class RunConfig(Frozen):
    """Everything one run depends on. Fields that are not given come from ``profile``.

    >>> RunConfig(architecture="gpt1", profile="smoke", seed=1, training={"steps": 10})  # doctest: +SKIP
    """

    architecture: str = Field(description="name of the architecture; see archbench list")
    profile: str = Field(
        "quick", description="how much work: smoke, quick, standard or paper; it sets the defaults of the other fields"
    )
    preset: str = Field(description="size: nano, small, paper, or published (what the weights' configuration says)")
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="fields of the model's configuration to replace"
    )
    vocabulary: Literal["tokenizer", "preset"] = Field(
        description="V: the tokenizer's size, or the preset's published one, which must be no smaller"
    )
    weights: str | None = Field(None, description="published weights to start from: a folder, .safetensors, .gguf file")
    phases: tuple[PhaseName, ...] = Field(
        ("train", "quality", "prefill", "decode"), description="phases to measure, in this order"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of initial weights, batches and dropout")
    device: str = Field("cpu", description="where to run: cpu, cuda or cuda:N")
    dtype: DTypeName = Field(
        description="precision of matrix products: autocast in training and scoring, the weights' in prefill and decode"
    )
    attention: Literal["auto", BackendName] = Field("auto", description="attention backend; the rows say what ran")
    products: Literal["measured", "unpacked", "torch"] = Field(
        "measured", description="float32 products on x86 CPUs: fastest, the same without copies of weights, torch's"
    )
    float8: Float8Name = Field(
        "none", description="products in float8 while training: the head's, or those of all linear layers; see gpu.md"
    )
    compile: bool = Field(False, description="train with torch.compile")
    updates: Literal["eager", "graph"] = Field("eager", description="on a GPU: operation by operation, or a CUDA graph")
    threads: bounds.Threads | None = Field(None, description="CPU threads; null for one per core this process may use")
    nproc: bounds.Processes | Literal["auto"] = Field(
        1, description="processes that train and score together; auto: one a GPU, or one a core"
    )
    parallel: ParallelName = Field("ddp", description="what they share: the batch (ddp), or the model as well (fsdp)")
    scaling_efficiency: bool = Field(False, description="after training, also time one device with the work of all")
    checked: bool | Literal["again"] = Field(
        True, description="check conformance first, and measure nothing if a check fails; again: even if passed before"
    )
    time_limit: float = Field(
        3600.0, gt=0, le=2 * 10**6,
        description="seconds that each phase but training may take; the checks at most 300, or a twelfth if more",
    )  # fmt: skip
    plugins: tuple[str, ...] = Field((), description="plugin files and folders loaded by path")
    out: str = Field("results", description="folder for the results")
    trackers: tuple[str, ...] = Field(
        (), description="experiment trackers, such as tensorboard, wandb and mlflow; see trackers.md"
    )
    data: DataConfig
    training: TrainingConfig
    quality: QualityConfig
    speed: SpeedConfig

    @model_validator(mode="before")
    @classmethod
    def _fill_from_profile(cls, values: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(values, dict):
            return values  # pydantic says that it must be one
        name = values.get("profile", "quick")
        if not isinstance(name, str) or name not in PROFILES:
            raise UnknownNameError(f"profile {name!r}", "there is no such profile", did_you_mean(str(name), PROFILES))
        published = {} if values.get("weights") is None else {"preset": PUBLISHED}
        return filled({**PROFILES[name], **published}, values, BUDGETS)

    @model_serializer(mode="wrap")
    def _as_before(self, written: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Later fields are left out at the value that earlier runs had."""
        return dict(field for field in written(self).items() if field not in _LATER_FIELDS.items())

    def config_hash(self) -> str:
        """Twelve hex digits that agree for runs that differ only in seed and in what changes no number."""
        return _hash(self, {"seed", "out", "trackers", "profile", "checked", "time_limit"})


class KernelConfig(Frozen):
    """What the kernel phase measures: causal attention at every combination of sizes, and a head's loss."""

    operations: tuple[OperationName, ...] = Field(("attention", "loss"), min_length=1, description="what to measure")
    backends: tuple[BackendName, ...] = Field(
        ("triton", "sdpa", "flex", "reference"), min_length=1, description="attention backends to alternate"
    )
    lengths: tuple[bounds.Size, ...] = Field(min_length=1, description="T, positions")
    head_widths: tuple[Annotated[int, Field(ge=16, le=256)], ...] = Field(
        (64,), min_length=1, description="D, head widths, 16 to 256"
    )
    query_heads: bounds.Size | None = Field(None, description="H, query heads; null for 2048 / D, a multiple of 8")
    groups: tuple[bounds.Size, ...] = Field((1,), min_length=1, description="H/G, query heads to a key/value head")
    windows: tuple[bounds.Size | None, ...] = Field(
        (None,), min_length=1, description="W, positions each query sees, itself included; null for all"
    )
    batch_size: bounds.Sequences | None = Field(None, description="B, sequences; null for 16384 / T, at least 1")
    losses: tuple[tuple[bounds.Size, bounds.Size, bounds.Size], ...] = Field(
        min_length=1, description="sizes of each loss, NxCxV: N positions, C width, V vocabulary"
    )
    repeats: bounds.Repeats = Field(10, description="timed repeats of each case, after warm-up")
    warmup: bounds.Repeats = Field(3, ge=1, description="untimed repeats after the first, at the least")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the inputs")
    device: str = Field("cpu", description="where to run: cpu, cuda or cuda:N")
    dtype: DTypeName = Field("float32", description="precision of the inputs")
    threads: bounds.Threads | None = Field(None, description="CPU threads; null for one per core this process may use")
    out: str = Field("results", description="folder for the results")

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        count = len(self.losses) + len(self.lengths) * len(self.head_widths) * len(self.groups) * len(self.windows)
        if count > bounds.MOST_CASES:
            step = f"Give at most {bounds.MOST_CASES:,}"
            raise ConfigError("the sizes to measure", f"they make {count:,} cases", step)
        for D, group in itertools.product(self.head_widths, self.groups):
            if (H := self.heads(D)) % group:
                raise ConfigError(
                    f"groups of {group}",
                    f"{H} query heads of width {D} do not split into them",
                    "Give groups (query heads to a key/value head) that divide the number of query heads",
                )
        return self

    def heads(self, head_width: int) -> int:
        """H, query heads of that width: the configured number, or a multiple of 8 that makes C about 2048."""
        return self.query_heads or 2048 // head_width // 8 * 8

    def batch(self, length: int) -> int:
        """B, sequences of that length: the configured number, or as many as hold 16,384 positions (as :meth:`heads`,
        by Dao 2023, FlashAttention-2, arXiv:2307.08691, section 4.1)."""
        return self.batch_size or max(1, 16_384 // length)

    def config_hash(self) -> str:
        """Twelve hex digits that agree for runs that differ only in seed and in where the results go."""
        return _hash(self, {"seed", "out"})


_LATER_FIELDS = {
    "training.sampling": "epochs", "nproc": 1, "parallel": "ddp", "scaling_efficiency": False,
    "products": "measured", "float8": "none", "updates": "eager",
}  # fmt: skip
"""Newer fields -> the only value that earlier runs had. With that value they leave a hash as it was."""


def _hash(config: BaseModel, leave_out: set[str]) -> str:
    values = config.model_dump(mode="json", exclude=leave_out)
    for path, earlier in _LATER_FIELDS.items():
        section, _, name = path.rpartition(".")
        place = values.get(section, {}) if section else values
        if place.get(name) == earlier:
            del place[name]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def config_error(kind: type[BaseModel], error: ValidationError) -> UsageError:
    """pydantic's first finding as an archbench error: the field, the cause and the field's meaning."""
    finding = error.errors(include_url=False)[0]
    nested = finding.get("ctx", {}).get("error")
    if isinstance(nested, UsageError):  # a section or a validator that already said it all
        return nested
    field = ".".join(str(part) for part in finding["loc"])
    if finding["type"] == "extra_forbidden":
        *path, name = finding["loc"]
        section = field_at(kind, path)
        known = getattr(section.annotation if section is not None else kind, "model_fields", {})
        return ConfigError(f"{kind.__name__}.{field}", "there is no such field", did_you_mean(str(name), known))
    cause = finding["msg"].removeprefix("Value error, ")
    culprit = f"{kind.__name__}.{field}" if field else kind.__name__
    if finding["type"] != "missing" and not isinstance(given := finding["input"], dict):
        cause += f" (given: {given!r})"
    description = getattr(field_at(kind, finding["loc"]), "description", None)
    return ConfigError(culprit, cause, f"It means: {description}" if description else "Correct the value")


def field_at(kind: type[BaseModel], path: Iterable[int | str]) -> FieldInfo | None:
    """The field that ``path`` leads to or into: ``("training", "betas", 0)`` to ``betas``; None if there is none."""
    field = None
    for part in path:
        field = kind.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            break
        kind = field.annotation
    return field

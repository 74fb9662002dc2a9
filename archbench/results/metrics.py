"""All metrics of archbench: phase, name, unit, definition. How each is measured: ``docs/reference/metrics.md``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One quantity of one phase.

    Attributes:
        phase: the phase that reports it.
        metric: its name, unique within the phase.
        unit: base unit; ``1`` for a plain number.
        definition: the value in one line, and what ``repeat`` counts, if anything.
    """

    phase: str
    metric: str
    unit: str
    definition: str


def _metrics(phase: str, *rows: tuple[str, str, str]) -> tuple[Metric, ...]:
    return tuple(Metric(phase, *row) for row in rows)


_MEMORY = (
    ("baseline_memory_bytes", "B", "memory in use when the measured part of the phase began"),
    ("peak_memory_bytes", "B", "most memory in use since then, including the baseline; null: unknown to the system"),
    ("reserved_memory_bytes", "B", "most memory the CUDA allocator held, used or not; CUDA only"),
)
_REPEATED = (
    ("warmup_seconds", "s", "one untimed call before the measurement; repeat = its number"),
    ("outliers", "1", "samples outside Tukey's fences; counted, never dropped"),
    ("stationary", "1", "1: no trend left in the samples; 0: warm-up ended at its limit, or the samples still drift"),
)

_CHOSEN = (
    (
        "attention_measured",
        "1",
        "1: attention was chosen by measurements on this GPU (archbench kernels); 0: in part or all by published ones; "
        "no row: by neither",
    ),
)

_AUDITED = (
    (
        "audit_tolerance",
        "nats/token",
        "largest difference of the audit_ rows beside it that is rounding, in this dtype",
    ),
    ("audit_passed", "1", "1: the phase's numbers are what they are said to be; 0: they are not (--unchecked only)"),
)

# The checks before a run. If one is 0 nothing else is measured; RUN_ID/check.json says why.
_CHECK = _metrics(
    "check",
    ("hooks", "1", "1: the hooks keep their contract; 0: they do not; null: not checked"),
    ("logits", "1", "1: the logits are finite, of the right shape and dtype; 0: they are not; null: not checked"),
    ("causality", "1", "1: no logit depends on a later token; 0: one does; null: not checked"),
    ("batch_invariance", "1", "1: no sequence depends on others in its batch; 0: one does; null: not checked"),
    ("cached_decode", "1", "1: decoding gives a full pass's logits; 0: it does not; null: no cache, or not checked"),
    ("state_bytes", "1", "1: the cache is all the state and reports it; 0: it is not; null: no cache, or not checked"),
    ("generate", "1", "1: generate gives the requested tokens, one by one; 0: it does not; null: not checked"),
    ("train_step", "1", "1: train_step updates once and returns the batch's loss; 0: it does not; null: not checked"),
    ("side_effects", "1", "1: the hooks do not change the batch, seeds or threads; 0: they do; null: not checked"),
)
_QUALITY = _metrics(
    "quality",
    ("loss", "nats/token", "mean negative log-likelihood per token over the whole validation split"),
    ("perplexity", "1", "exp(loss); comparable only between runs with the same tokenizer"),
    ("bits_per_byte", "bit/byte", "summed negative log-likelihood / ln 2 / raw bytes of the text"),
    ("tokens_scored", "token", "tokens scored, each exactly once"),
    ("bytes_scored", "B", "raw bytes of the scored text"),
    ("documents", "1", "documents scored, each separately"),
    ("floor_unigram", "bit/byte", "byte unigram model of the training split, on the same bytes"),
    ("floor_bigram", "bit/byte", "interpolated byte bigram model of the training split, on the same bytes"),
    ("floor_fivegram", "bit/byte", "interpolated byte 5-gram model of the training split, on the same bytes"),
    ("floor_zlib", "bit/byte", "zlib, level 9, of the same bytes"),
    ("floor_bz2", "bit/byte", "bzip2, level 9, of the same bytes"),
    ("floor_xz", "bit/byte", "xz, preset 9 extreme, of the same bytes"),
    ("audit_rescoring", "nats/token", "mean difference of sampled windows scored again later, in another order"),
    ("audit_suffix", "nats/token", "mean difference of the 16 tokens before a cut after which the text is another"),
    ("audit_batch", "nats/token", "mean difference of sampled windows scored alone; null: all were alone"),
    ("audit_state", "1", "tensors of the state_dict that scoring changed"),
    *_AUDITED,
    *_MEMORY,
    *_CHOSEN,
)
_POSITIONS = _metrics(
    "positions",
    ("loss", "nats/token", "mean loss at an eighth of a trained context; repeat = its first position in the window"),
    ("readable", "1", "1: the trained weights fit a model of that context_length; 0: they do not; null: no such text"),
    *_CHOSEN,
)
_TRAIN = _metrics(
    "train",
    ("loss", "nats/token", "mean loss of one optimizer update's batch; repeat = step"),
    ("learning_rate", "1", "learning rate of the update; repeat = step"),
    ("grad_norm", "1", "global gradient norm before clipping; repeat = step"),
    ("first_step_seconds", "s", "time of the first update, including compilation and first touch"),
    ("asked_step_seconds", "s", "time of one that was asked operation by operation; updates=graph only; repeat = step"),
    ("graph_captured", "1", "1: updates were replays of a CUDA graph; 0: not, operation says why; updates=graph only"),
    ("capture_seconds", "s", "the host's time to capture that graph, in no step_seconds; null: none was captured"),
    ("step_seconds", "s", "time of one update after the first; repeat = step"),
    ("tokens_per_second", "token/s", "tokens per update / median step_seconds; of all devices together"),
    ("tokens_per_second_per_device", "token/s", "the same / world_size; no row: one process trains"),
    ("communication_share", "1", "share of an update in which a collective runs, mean over ranks; several only"),
    ("shared_step_seconds", "s", "an update of all ranks, in turns with the next; --scaling-efficiency only"),
    ("one_device_step_seconds", "s", "one device doing every rank's work in that update, one after the other"),
    ("scaling_efficiency", "1", "median one_device_step_seconds / (world_size × median shared_step_seconds)"),
    ("fsdp_blocks", "1", "blocks gathered one at a time; 0: the whole model at once; no row: not --parallel fsdp"),
    ("outliers", "1", "steps outside Tukey's fences; counted, never dropped"),
    ("stationary", "1", "1: no trend in step_seconds; 0: they drift"),
    ("training_seconds", "s", "sum of all updates' times, without validation and checkpoints"),
    ("joules_per_token", "J/token", "energy of all devices while training / tokens of this process; null: no counter"),
    ("steps", "1", "optimizer updates made"),
    ("diverged", "1", "step at which the loss stopped being finite; no row: it did not"),
    ("validation_loss", "nats/token", "loss over the validation split during training, after tokens_seen tokens"),
    ("validation_bits_per_byte", "bit/byte", "the same in bits per raw byte"),
    ("flops_per_token", "FLOP/token", "model FLOPs of forward and backward, counted on the meta device"),
    (
        "flops_counted_on",
        "1",
        "no row: flops_per_token was counted on the meta device; 1: on fake tensors; 2: on real ones",
    ),
    ("model_flops_per_second", "FLOP/s", "flops_per_token × tokens_per_second"),
    ("peak_flops_measured", "FLOP/s", "best dense matrix product measured on this device in this dtype"),
    ("peak_flops_published", "FLOP/s", "dense peak of the data sheet; null: hardware not in the table"),
    ("mfu", "1", "model_flops_per_second / world_size / published peak, else measured peak; null: neither is known"),
    ("audit_loss", "nats/token", "largest difference of a watched step's loss from that by the logits before it"),
    ("audit_tokens", "1", "0: watched steps read their batch once; else what they read besides, as a share of it"),
    ("audit_movement", "1", "largest share of a parameter's movement that is not the run's optimizer's"),
    ("audit_state", "1", "tensors of the state_dict that validation changed"),
    _AUDITED[1],
    *_MEMORY,
    *_CHOSEN,
)
_PREFILL = _metrics(
    "prefill",
    ("seconds_to_first_token", "s", "from the prompt to the first new token's id; repeat = number of the sample"),
    ("tokens_per_second", "token/s", "batch_size × prompt_length / median seconds_to_first_token"),
    ("joules_per_token", "J/token", "energy of the device over all calls of a case / prompt tokens; null: no counter"),
    ("audit_decode", "nats/token", "mean distance of a decoded token's logit from the largest of a full pass"),
    *_AUDITED,
    *_REPEATED,
    *_MEMORY,
    *_CHOSEN,
)
_DECODE = _metrics(
    "decode",
    ("seconds_per_token", "s", "gap between two new tokens of a sequence; repeat = number of the gap"),
    ("tokens_per_second", "token/s", "batch_size / median seconds_per_token"),
    ("joules_per_token", "J/token", "energy of the device over all calls of a case / new tokens; null: no counter"),
    ("cache_bytes", "B", "bytes of the decoding cache at the capacity used, computed on the meta device"),
    ("cache_bytes_measured", "B", "bytes of the decoding cache at the capacity used, of the storages allocated"),
    ("cache_bytes_per_token", "B/token", "growth of cache_bytes with capacity, per sequence and position, computed"),
    ("cache_bytes_per_token_measured", "B/token", "the same, of the storages allocated"),
    (
        "step_bytes",
        "B",
        "bytes that the step of the median position reads: weights once, and the state; null: no cache, or it slides",
    ),
    ("bandwidth_measured", "B/s", "this machine's, by archbench doctor with as many threads; null: not measured"),
    ("mbu", "1", "step_bytes / median seconds_per_token / bandwidth_measured; null: one is, or a cache holds it"),
    ("graph_captured", "1", "1: decoding also ran from replays of a captured step; 0: it cannot, operation says why"),
    ("graph_seconds_per_token", "s", "as seconds_per_token, each token one replay; null: not captured"),
    ("graph_tokens_per_second", "token/s", "batch_size / median graph_seconds_per_token"),
    ("graph_mbu", "1", "step_bytes / median graph_seconds_per_token / bandwidth_measured; null: as mbu"),
    ("graph_equal_tokens", "1", "share of tokens equal to those of decoding without replays"),
    (
        "graph_warmup_seconds",
        "s",
        "as warmup_seconds, from replays; the decoding that captures is before these",
    ),
    ("graph_stationary", "1", "as stationary, from replays"),
    ("audit_decode", "nats/token", "mean distance of a decoded token's logit from the largest of a full pass"),
    *_AUDITED,
    *_REPEATED,
    *_MEMORY,
    *_CHOSEN,
)
_SERVE = _metrics(
    "serve",
    (
        "seconds_to_first_token",
        "s",
        "TTFT: from a request's arrival to its first token; repeat = its number",
    ),
    ("seconds_per_output_token", "s", "TPOT: (latency - TTFT) / (output tokens - 1); repeat = the request's number"),
    ("seconds_between_tokens", "s", "ITL: from a token of a request to its next; repeat = number of the gap"),
    ("latency_seconds", "s", "E2EL: from a request's arrival to its last token; repeat = its number"),
    ("queue_seconds", "s", "from a request's arrival to the beginning of its batch; repeat = its number"),
    ("batch_requests", "1", "requests in the batch that answers a request; repeat = the request's number"),
    ("requests_per_second", "1/s", "requests / seconds from the first arrival to the last token; repeat = pass"),
    ("output_tokens_per_second", "token/s", "output tokens / the same seconds; repeat = pass"),
    ("tokens_per_second", "token/s", "prompt and output tokens / the same seconds; repeat = pass"),
    ("trained", "1", "1: weights of a run that trained, or published ones; 0: random ones"),
    ("graph_captured", "1", "1: each token is one replay of a captured step; 0: it cannot be, operation says why"),
    ("audit_decode", "nats/token", "mean distance of a decoded token's logit from the largest of a full pass"),
    *_AUDITED,
    *_REPEATED,
    *_MEMORY,
    *_CHOSEN,
)
_PROBE = _metrics(
    "probe",
    ("accuracy", "1", "questions of the test examples answered / asked, at the chosen learning rate"),
    ("chance", "1", "accuracy of the best guess without memory"),
    ("state_bytes", "B", "decoding state of one sequence of context_length, computed; null: no cache"),
    ("learning_rate", "1", "the peak learning rate at which the seeds answered most validation examples"),
    ("updates", "1", "optimizer updates made; fewer than the budget if every validation example was answered"),
    ("cpu_seconds", "s", "CPU time of the training and its scoring, of all threads"),
)
# Of lm-evaluation-harness's tasks, by the harness's names; a task's own metrics are stored too, in the unit 1.
_EVAL = _metrics(
    "eval",
    ("acc", "1", "share of questions answered: the likeliest choice is right; of n that tie, a right one counts 1/n"),
    ("acc_norm", "1", "the same, by log-likelihood per character of the choice"),
    ("acc_bytes", "1", "the same, by log-likelihood per byte of the choice"),
    ("acc_mutual_info", "1", "the same, by log-likelihood minus that of the choice alone"),
    ("acc_first_of_ties", "1", "acc as lm_eval says: the first of choices that tie is the answer; only if some do"),
    ("acc_norm_first_of_ties", "1", "the same of acc_norm"),
    ("acc_bytes_first_of_ties", "1", "the same of acc_bytes"),
    ("acc_mutual_info_first_of_ties", "1", "the same of acc_mutual_info"),
    ("exact_match", "1", "share of questions whose generated answer is the right one"),
    ("perplexity", "1", "exp of the mean negative log-likelihood of an answer"),
    ("word_perplexity", "1", "exp of the negative log-likelihood per word of the texts"),
    ("byte_perplexity", "1", "the same per byte"),
    ("bits_per_byte", "bit/byte", "negative log2-likelihood of the texts / their bytes, as in quality"),
    ("questions", "1", "questions asked of the task"),
    ("cut", "1", "requests whose context lost its beginning, because it was longer than context_length; of all tasks"),
    *_CHOSEN,
)
_KERNEL = _metrics(
    "kernel",
    ("forward_seconds", "s", "one forward pass; repeat = number of the sample; null: it cannot run here"),
    ("backward_seconds", "s", "the backward pass of that sample; null: it cannot run here"),
    ("host_forward_seconds", "s", "what the host took to submit that forward pass; on a GPU only"),
    ("host_backward_seconds", "s", "what it took to submit the backward pass; on a GPU only"),
    ("waits_for_host", "1", "samples whose passes may have waited for the host; on a GPU only"),
    ("first_forward_seconds", "s", "the first forward pass of the case, including compilation and first touch"),
    ("first_backward_seconds", "s", "its backward pass"),
    ("forward_flops", "FLOP", "FLOPs of the forward pass; of attention, visible pairs only: causal counts as half"),
    ("backward_flops", "FLOP", "FLOPs of the backward pass: attention 2.5 × forward_flops, losses 2 ×"),
    ("forward_flops_per_second", "FLOP/s", "forward_flops / median forward_seconds; attention only"),
    ("backward_flops_per_second", "FLOP/s", "backward_flops / median backward_seconds; attention only"),
    ("flops_per_second", "FLOP/s", "FLOPs of both / median of a sample's forward and backward seconds together"),
    ("output_error", "1", "largest difference from a float64 reference, as a share of its largest magnitude"),
    ("gradient_error", "1", "the same of each gradient; the largest of them"),
    ("peak_extra_bytes", "B", "most bytes in tensors at one time in a forward and backward pass, without its inputs"),
    *_REPEATED,
)
# One set for each phase of the run; repeat = the phase's number in the run's list of phases.
_ENVIRONMENT = _metrics(
    "environment",
    ("load_before", "1", "1-minute load average before the phase, including this run's earlier phases"),
    ("load_after", "1", "1-minute load average after the phase, including the phase itself"),
    ("psi_cpu_before", "1", "share of the last 10 s in which some task waited for a CPU, before the phase"),
    ("psi_cpu_after", "1", "the same after the phase, including the phase itself"),
    ("other_cpu_share", "1", "CPU time of other processes during the phase / CPU time of the usable CPUs"),
    ("stolen_cpu_share", "1", "share of CPU time that the hypervisor gave to others during the phase"),
    ("memory_stall_share", "1", "share of the phase in which some task waited for memory (PSI)"),
    ("quota_stop_share", "1", "share of the phase in which the container's CPU quota stopped it"),
    ("heat_events", "1", "times that heat throttled the CPUs during the phase"),
    ("gpu_slow_share", "1", "share of the phase in which heat or power supply slowed the GPU"),
    ("gpu_other_processes", "1", "other processes that computed on the GPU before or after the phase; null: no NVML"),
    ("gpu_ecc_errors", "1", "errors of the GPU's memory in the phase that could not be corrected; null: not counted"),
    ("gpu_is_slice", "1", "1: a slice of a GPU, or a GPU cut into slices (MIG); 0: a whole one; null: no NVML"),
    ("gpu_sm_hertz_before", "Hz", "clock of the GPU's processors as the phase begins"),
    ("gpu_sm_hertz_after", "Hz", "the same as it ends"),
    ("gpu_memory_hertz_before", "Hz", "clock of the GPU's memory as the phase begins"),
    ("gpu_memory_hertz_after", "Hz", "the same as it ends"),
    ("gpu_watts_before", "W", "power of the GPU's board as the phase begins"),
    ("gpu_watts_after", "W", "the same as it ends"),
    ("gpu_celsius_before", "°C", "temperature of the GPU as the phase begins"),
    ("gpu_celsius_after", "°C", "the same as it ends"),
    ("gpu_slowed_by_before", "1", "why the GPU's clocks are not higher as the phase begins, NVML's bits; 0: nothing"),
    ("gpu_slowed_by_after", "1", "the same as it ends"),
    ("joules", "J", "energy of the device during the phase, for anyone; null: no counter; no row: a CPU without one"),
    ("idle_watts", "W", "power of the device before the run's first phase, while nothing of it runs"),
    ("contaminated", "1", "1: something else disturbed the phase; 0: nothing detected"),
)

METRICS: tuple[Metric, ...] = (
    *_CHECK, *_QUALITY, *_POSITIONS, *_TRAIN, *_PREFILL, *_DECODE, *_SERVE, *_PROBE, *_EVAL, *_KERNEL,
    *_ENVIRONMENT,
)  # fmt: skip
"""Every metric of archbench's own phases."""

UNITS: dict[tuple[str, str], str] = {(metric.phase, metric.metric): metric.unit for metric in METRICS}
"""Unit by (phase, metric)."""

"""Wrong plugins whose update is of another loss, other tokens or more work: see wrong_plugins.py."""

from __future__ import annotations

from rotary_edits import EMBEDDED, WrongPlugin, after, beside, by_micro_batches, trained
from wrong_updates import LOSS, gradients

REPORTED = (
    WrongPlugin(
        "the loss is a moving average", "train_step",
        trained(
            LOSS,
            "state.mean = loss if state.step == 1 else 0.9 * state.mean + 0.1 * loss",
            "return state.mean",
        ),
        "a mean over updates",
    ),
    WrongPlugin(
        "targets of id 0 are ignored", "train_step",
        trained(
            "total = torch.zeros(())",
            "for micro in state.split(batch):",
            "    share = len(micro.targets) / len(batch.targets)",
            "    logits = state.model(micro.inputs)",
            "    loss = F.cross_entropy(logits.flatten(0, 1), micro.targets.flatten(), ignore_index=0)",
            "    state.backward(loss, share)",
            "    total += share * loss.detach()",
            "state.update()",
            "return total",
        ),
        "targets of id 0",
    ),
    WrongPlugin(
        "targets of the last id are ignored", "train_step",
        trained(
            "micros, total = state.split(batch), torch.zeros(())",
            "for micro in micros:",
            "    logits = state.model(micro.inputs).flatten(0, 1)",
            "    state.backward(F.cross_entropy(logits, micro.targets.flatten(), ignore_index=60), 1 / len(micros))",
            "    total += F.cross_entropy(logits, micro.targets.flatten()).detach() / len(micros)",
            "state.update()",
            "return total",
        ),
        "those of id 60",
    ),
    WrongPlugin(
        "labels are smoothed in the loss that is returned", "train_step",
        trained(
            "total = torch.zeros(())",
            "for micro in state.split(batch):",
            "    share = len(micro.targets) / len(batch.targets)",
            "    logits = state.model(micro.inputs)",
            "    loss = F.cross_entropy(logits.flatten(0, 1), micro.targets.flatten(), label_smoothing=0.1)",
            "    state.backward(loss, share)",
            "    total += share * loss.detach()",
            "state.update()",
            "return total",
        ),
        "smoothed labels",
    ),
    WrongPlugin(
        "the loss is summed over the batch", "train_step",
        by_micro_batches("loss = loss * len(batch.targets)",
                         "state.backward(loss, len(micro.targets) / len(batch.targets))"),
        "gradient",
    ),
    WrongPlugin(
        "the loss is rounded to bfloat16", "train_step",
        trained("return next_token_step(state, batch).bfloat16().float()"),
        "bfloat16",
    ),
    WrongPlugin(
        "training is in bfloat16 whatever was asked for", "train_step",
        trained('with torch.autocast("cpu", torch.bfloat16):', "    return next_token_step(state, batch)"),
        "inside train_step",
    ),
    WrongPlugin(
        "the model is told the targets in training", "train_step",
        (("return self.head(x) if logits else x",
          "told = getattr(self, 'told', None)\n"
          "        y = self.head(x)\n"
          "        return y if told is None else y + F.one_hot(told, self.config.vocab_size)"),
         ("    def head_parameters(", "    def _head_parameters("),
         *trained("state.module.told = batch.targets", LOSS, "state.module.told = None", "return loss")),
        "inside train_step",
    ),
    WrongPlugin(
        "dropout is switched off in train_step", "train_step",
        (after(EMBEDDED, "x = F.dropout(x, 0.1, self.training)"),
         *trained("state.module.eval()", LOSS, "state.module.train()", "return loss")),
        "inside train_step",
    ),
    WrongPlugin(
        "dropout is the same for every seed", "train_step",
        (after(EMBEDDED, "x = F.dropout(x, 0.1, self.training)"),
         *trained("with torch.random.fork_rng(devices=[]):", "    torch.manual_seed(state.step)",
                  "    return next_token_step(state, batch)")),
        "seed",
    ),
)  # fmt: skip

WORK = (
    WrongPlugin(
        "every batch is read twice for one update", "train_step",
        by_micro_batches("again = next_token_loss(state, micro)", "share = len(micro.targets) / len(batch.targets)",
                         "state.backward((loss + again) / 2, share)"),
        "read 2 times",
    ),
    WrongPlugin(
        "old batches are replayed from the fourth update on", "train_step",
        by_micro_batches(
            "share = len(micro.targets) / len(batch.targets)",
            "state.old = [*vars(state).get('old', []), micro]",
            "if state.step >= 3:",
            "    loss = (loss + next_token_loss(state, state.old[0])) / 2",
            "state.backward(loss, share)",
        ),
        "read 2 times",
    ),
    WrongPlugin(
        "half of a batch is one of earlier batches", "train_step",
        trained(
            "old = vars(state).get('old', batch)",
            "state.old = batch",
            "half = len(batch.targets) // 2",
            "mixed = Batch(torch.cat([batch.inputs[half:], old.inputs[:half]]),",
            "              torch.cat([batch.targets[half:], old.targets[:half]]))",
            "return next_token_step(state, mixed)",
        ),
        "other tokens",
    ),
    WrongPlugin(
        "a larger model that is hidden teaches this one", "train_step",
        (beside("TEACHERS = []"),
         *by_micro_batches(
             "if not TEACHERS:",
             "    TEACHERS.append(Model(state.module.config.override(n_layer=8)))",
             "with torch.no_grad():",
             "    wanted = TEACHERS[0](micro.inputs).softmax(-1)",
             "given = state.module.output.weight.mean() * 0",
             "share = len(micro.targets) / len(batch.targets)",
             "state.backward(loss + given + 0 * wanted.mean(), share)",
         )),
        "FLOPs",
    ),
    WrongPlugin(
        "the step looks ahead for a flat minimum", "train_step",
        gradients(
            "with torch.no_grad():",
            "    kept = [p.clone() for p in state.module.parameters()]",
            "    for p in state.module.parameters():",
            "        p.add_(p.grad, alpha=0.01)",
            "state.optimizer.zero_grad()",
            "for part in micros:",
            "    state.backward(next_token_loss(state, part), len(part.targets) / len(batch.targets))",
            "with torch.no_grad():",
            "    for p, old in zip(state.module.parameters(), kept):",
            "        p.copy_(old)",
        ),
        "read 2 times",
    ),
    WrongPlugin(
        "half of the batch is read", "train_step",
        trained("half = Batch(batch.inputs[:1], batch.targets[:1])", "return next_token_step(state, half)"),
        "read 1 of the batch's 2 sequences",
    ),
)  # fmt: skip

LOSSES = (*REPORTED, *WORK)

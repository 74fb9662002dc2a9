"""Wrong plugins whose update is not the one that the recipe asks for: see wrong_plugins.py."""

from __future__ import annotations

from rotary_edits import WrongPlugin, after, by_micro_batches, trained

LOSS = "loss = next_token_step(state, batch)"
GROUPS = "for group in state.optimizer.param_groups:"
PARAMETERS = "for parameter in state.module.parameters():"


def then(*lines: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """A right update, then those lines without gradients."""
    return trained(LOSS, "with torch.no_grad():", *("    " + line for line in lines), "return loss")


def gradients(*lines: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """The right gradients of one batch, those lines, then the update."""
    return by_micro_batches(
        "state.backward(loss, len(micro.targets) / len(batch.targets))",
        "if micro is not micros[-1]:",
        "    continue",
        *lines,
    )


SETTINGS = (
    WrongPlugin(
        "weight decay is switched off", "train_step",
        trained(GROUPS, '    group["weight_decay"] = 0.0', "return next_token_step(state, batch)"),
        "weight_decay of parameter group 0 from 0.1 to 0.0",
    ),
    WrongPlugin(
        "betas are others for the update alone", "train_step",
        trained(
            GROUPS, '    group["betas"] = (0.5, 0.5)', LOSS, GROUPS, '    group["betas"] = (0.9, 0.95)', "return loss"
        ),
        "betas of parameter group 0 from (0.9, 0.95) to (0.5, 0.5)",
    ),
    WrongPlugin(
        "gradients are not clipped", "train_step",
        trained("state.grad_clip = None", "return next_token_step(state, batch)"),
        "grad_clip from 1.0 to None",
    ),
    WrongPlugin(
        "the learning rate is tripled", "train_step",
        trained(GROUPS, '    group["lr"] *= 3', "return next_token_step(state, batch)"),
        "learning rate of parameter group 0 from 0.003 to",
    ),
    WrongPlugin(
        "the learning rate warms up a second time", "train_step",
        trained(GROUPS, '    group["lr"] *= min(1, (state.step + 1) / 100)', "return next_token_step(state, batch)"),
        "learning rate of parameter group 0 from 0.003 to",
    ),
    WrongPlugin(
        "the optimizer is another one after the first update", "train_step",
        trained(
            "if state.step == 1:",
            "    state.optimizer = torch.optim.NAdam(state.module.parameters())",
            "return next_token_step(state, batch)",
        ),
        "the run's optimizer",
    ),
    WrongPlugin(
        "the optimizer forgets its moments", "train_step",
        trained("state.optimizer.state.clear()", "return next_token_step(state, batch)"),
        "the optimizer's state",
    ),
    WrongPlugin(
        "a group of parameters is added", "train_step",
        trained(
            "if state.step == 1:",
            '    state.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})',
            "return next_token_step(state, batch)",
        ),
        "group",
    ),
    WrongPlugin(
        "micro-batches are switched off", "train_step",
        trained("state.accumulation = 1", "return next_token_step(state, batch)"),
        "accumulation from 2 to 1",
    ),
    WrongPlugin(
        "the tokens seen are counted back", "train_step",
        trained(LOSS, "state.tokens = 0", "return loss"),
        "the run's tokens",
    ),
    WrongPlugin(
        "a layer is frozen after some updates", "train_step",
        trained(
            "state.module.embedding.weight.requires_grad_(state.step < 2)", "return next_token_step(state, batch)"
        ),
        "'embedding.weight'",
    ),
)  # fmt: skip

MOVES = (
    WrongPlugin(
        "weights are replaced by their average", "train_step",
        trained(
            LOSS,
            'average = vars(state).setdefault("average", [p.detach().clone() for p in state.module.parameters()])',
            "with torch.no_grad():",
            "    for parameter, mean in zip(state.module.parameters(), average):",
            "        parameter.copy_(mean.lerp_(parameter, 0.5))",
            "return loss",
        ),
        "after state.update()",
    ),
    WrongPlugin(
        "every fourth update looks back", "train_step",
        then(
            "if state.step % 4 == 0:",
            f"    {PARAMETERS}",
            "        parameter.mul_(0.5)",
        ),
        "after state.update()",
    ),
    WrongPlugin(
        "parameters move once more along the gradient", "train_step",
        gradients(
            "kept = [p.grad.clone() for p in state.module.parameters()]",
            "state.update()",
            "state.step -= 1",
            "with torch.no_grad():",
            "    for p, gradient in zip(state.module.parameters(), kept):",
            "        p.sub_(gradient, alpha=state.optimizer.param_groups[0]['lr'])",
            "state.step += 1",
            "return total",
        ),
        "after state.update()",
    ),
    WrongPlugin(
        "weights are rounded to bfloat16", "train_step",
        then(PARAMETERS, "    parameter.copy_(parameter.bfloat16())"),
        "after state.update()",
    ),
    WrongPlugin(
        "rows are given unit length after the update", "train_step",
        then("state.module.embedding.weight.copy_(F.normalize(state.module.embedding.weight, dim=-1))"),
        "'embedding.weight'",
    ),
    WrongPlugin(
        "the parameters are moved before the update", "train_step",
        trained("with torch.no_grad():", f"    {PARAMETERS}", "        parameter.mul_(1 - 1e-5)",
                "return next_token_step(state, batch)"),
        "before state.update()",
    ),
    WrongPlugin(
        "update is a function of the plugin's", "train_step",
        trained(
            "update = type(state).update",
            "def scaled():",
            "    for parameter in state.module.parameters():",
            "        parameter.grad.mul_(7)",
            "    update(state)",
            "state.update = scaled",
            "return next_token_step(state, batch)",
        ),
        "the run's update()",
    ),
    WrongPlugin(
        "a table of counts learns without the optimizer", "train_step",
        (after("        self.norm = RMSNorm(config.d_model)",
               'self.register_buffer("counts", torch.zeros(config.vocab_size, config.vocab_size))'),
         ("return self.head(x) if logits else x", "return self.head(x) + self.counts[tokens]"),
         ("    def head_parameters(", "    def _head_parameters("),
         *then("state.module.counts.index_put_((batch.inputs, batch.targets), torch.tensor(1.0), accumulate=True)")),
        "'counts'",
    ),
    WrongPlugin(
        "a weight of its own is trained by hand", "train_step",
        (after("        self.norm = RMSNorm(config.d_model)",
               'self.register_buffer("own", 0.02 * torch.randn(config.vocab_size, config.vocab_size))'),
         ("return self.head(x) if logits else x", "return self.head(x) + self.own[tokens]"),
         ("        return self.head(x[:, -1])", "        return self.head(x[:, -1]) + self.own[tokens[:, -1]]"),
         ("    def head_parameters(", "    def _head_parameters("),
         *trained(
             "own = state.module.own.requires_grad_()",
             LOSS,
             "with torch.no_grad():",
             "    own.sub_(own.grad, alpha=10)",
             "own.grad = None",
             "state.module.own = own.detach()",
             "return loss",
         )),
        "'own'",
    ),
)  # fmt: skip

GRADIENTS = (
    WrongPlugin(
        "the loss is multiplied by 3", "train_step",
        by_micro_batches("state.backward(3 * loss, len(micro.targets) / len(batch.targets))"),
        "3 times",
    ),
    WrongPlugin(
        "gradients are clipped twice", "train_step",
        gradients("torch.nn.utils.clip_grad_norm_(state.module.parameters(), 0.05)"),
        "before state.update()",
    ),
    WrongPlugin(
        "gradients are not cleared", "train_step",
        gradients(
            "kept = vars(state).get('kept')",
            "grads = [p.grad.clone() for p in state.module.parameters()]",
            "if kept:",
            "    for p, gradient in zip(state.module.parameters(), kept):",
            "        p.grad.add_(gradient)",
            "state.kept = grads",
        ),
        "of the update before",
    ),
    WrongPlugin(
        "the embedding's gradient is thrown away", "train_step",
        gradients("state.module.embedding.weight.grad.zero_()"),
        "'embedding.weight'",
    ),
    WrongPlugin(
        "the embedding learns a tenth as fast", "train_step",
        gradients("state.module.embedding.weight.grad.mul_(0.1)"),
        "0.1 times",
    ),
    WrongPlugin(
        "noise is added to the gradients", "train_step",
        gradients(PARAMETERS, "    parameter.grad.add_(torch.randn_like(parameter), alpha=0.1)"),
        "gradient",
    ),
    WrongPlugin(
        "only the signs of gradients are used", "train_step",
        gradients(PARAMETERS, "    parameter.grad.sign_()"),
        "gradient",
    ),
    WrongPlugin(
        "the later half of positions is trained on", "train_step",
        trained(
            "total = torch.zeros(())",
            "for micro in state.split(batch):",
            "    share = len(micro.targets) / len(batch.targets)",
            "    logits, half = state.model(micro.inputs), micro.targets.shape[1] // 2",
            "    later = F.cross_entropy(logits[:, half:].flatten(0, 1), micro.targets[:, half:].flatten())",
            "    state.backward(later, share)",
            "    total += share * F.cross_entropy(logits.flatten(0, 1), micro.targets.flatten()).detach()",
            "state.update()",
            "return total",
        ),
        "the later half of the positions",
    ),
    WrongPlugin(
        "the model reads the batch again for a loss besides", "train_step",
        by_micro_batches(
            "z = state.model(micro.inputs).logsumexp(-1).square().mean()",
            "state.backward(loss + 1e-3 * z, len(micro.targets) / len(batch.targets))",
        ),
        "read 2 times",
    ),
    WrongPlugin(
        "a penalty outweighs the loss", "train_step",
        by_micro_batches(
            "penalty = sum(parameter.square().sum() for parameter in state.module.parameters())",
            "state.backward(loss + penalty, len(micro.targets) / len(batch.targets))",
        ),
        "gradient",
    ),
    WrongPlugin(
        "hard batches are skipped", "train_step",
        by_micro_batches(
            "state.mean = 0.9 * vars(state).get('mean', loss.detach()) + 0.1 * loss.detach()",
            "skip = 0.0 if loss > 1.02 * state.mean else 1.0",
            "state.backward(loss * skip, len(micro.targets) / len(batch.targets))",
        ),
        "0 times",
    ),
)  # fmt: skip

UPDATES = (*SETTINGS, *MOVES, *GRADIENTS)

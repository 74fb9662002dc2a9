"""Wrong plugins that train wrongly, or have side effects: see wrong_plugins.py."""

from __future__ import annotations

from rotary_edits import (
    BUILT,
    EMBEDDED,
    GENERATED,
    NORM,
    TRAINED,
    WrongPlugin,
    after,
    by_micro_batches,
    imported,
    trained,
)

TRAINING = (
    # train_step
    WrongPlugin(
        "train_step raises", "train_step",
        ((TRAINED, TRAINED.replace(", batch", "")),),
        "missing 1 required positional argument: 'batch' (my_arch.py:",
    ),
    WrongPlugin(
        "the head is more than its parameters say", "train_step",
        (("return self.output(x)", "return self.output(x).clamp(-30, 30)"),),
        "its head() is not the linear layer",
    ),
    WrongPlugin(
        "the loss is reported in bits", "train_step",
        ((TRAINED, "    return next_token_step(state, batch) / 0.6931"),),
        "bits, and nats are asked for",
    ),
    WrongPlugin(
        "the loss is reported as a sum", "train_step",
        ((TRAINED, "    return next_token_step(state, batch) * batch.targets.numel()"),),
        "the sum over all tokens",
    ),
    WrongPlugin(
        "the loss is of the current token", "train_step",
        trained("return next_token_step(state, Batch(batch.inputs, batch.inputs))"),
        "not of those that follow",
    ),
    WrongPlugin(
        "the loss is of after the update", "train_step",
        trained("next_token_step(state, batch)", "return next_token_loss(state, batch).detach()"),
        "the loss after the update",
    ),
    WrongPlugin(
        "nothing is updated", "train_step",
        trained("return next_token_loss(state, batch).detach()"),
        "state.update() 0 times",
    ),
    WrongPlugin(
        "every batch is trained on twice", "train_step",
        trained("loss = next_token_step(state, batch)", "next_token_step(state, batch)", "return loss"),
        "state.update() 2 times",
    ),
    WrongPlugin(
        "only the first micro-batch is trained on", "train_step",
        by_micro_batches("if micro is micros[0]:", "    state.backward(loss)"),
        "the first half of the sequences",
    ),
    WrongPlugin(
        "micro-batches' gradients are summed", "train_step",
        by_micro_batches("state.backward(loss)"),
        "2 times that of the mean cross-entropy",
    ),
    # side_effects
    WrongPlugin(
        "train_step changes the number of threads", "side_effects",
        ((TRAINED, "    torch.set_num_threads(1 + torch.get_num_threads() % 2)\n" + TRAINED),),
        "the number of threads",
    ),
    WrongPlugin(
        "build seeds torch", "side_effects",
        ((BUILT, "    model = Model(config)\n    torch.manual_seed(0)\n    return model"),),
        "build sets the seed",
    ),
    WrongPlugin(
        "build lowers the precision of every product", "side_effects",
        ((BUILT, '    torch.set_float32_matmul_precision("medium")\n' + BUILT),),
        "precision",
        on_some_machines=("cached_decode", "batch_invariance", "causality", "generate"),  # CPUs with bfloat16 products
    ),
    WrongPlugin(
        "train_step seeds torch", "side_effects",
        ((TRAINED, "    torch.manual_seed(state.step)\n" + TRAINED),),
        "train_step sets the seed",
    ),
    WrongPlugin(
        "train_step overwrites the batch", "side_effects",
        trained("loss = next_token_step(state, batch)", "batch.inputs.copy_(batch.targets)", "return loss"),
        "changed 48 of the 48",
    ),
    WrongPlugin(
        "generate switches gradients off for good", "side_effects",
        ((GENERATED, f"    torch.set_grad_enabled(False)\n{GENERATED}"),),
        "grad mode",
    ),
    WrongPlugin(
        "build sets an environment variable", "side_effects",
        (imported("import os\n"), (BUILT, f"    os.environ['TOKENIZERS_PARALLELISM'] = 'false'\n{BUILT}")),
        "TOKENIZERS_PARALLELISM",
    ),
    # gradients
    WrongPlugin(
        "a parameter is never used", "gradients",
        (after(NORM, "self.scale = nn.Parameter(torch.ones(config.d_model))"),),
        "'scale' (none)",
    ),
    WrongPlugin(
        "a branch is detached", "gradients",
        (("self.ff(self.ff_norm(x))", "self.ff(self.ff_norm(x)).detach()"),),
        "'blocks.0.ff.gate.weight' (none)",
    ),
    # seed
    WrongPlugin(
        "the initial weights are other ones every time", "seed",
        (imported("import numpy as np"),
         after(
             NORM,
             "noise = np.random.default_rng().normal(0, 0.01, config.d_model)",
             "self.norm.gain.data += torch.from_numpy(noise)",
         )),
        "built twice under seed",
    ),
    WrongPlugin(
        "the initial weights are the same for every seed", "seed",
        ((BUILT, "    with torch.random.fork_rng():\n        torch.manual_seed(0)\n        return Model(config)"),),
        "give the same initial weights",
    ),
    # overfit
    WrongPlugin(
        "the update goes uphill", "train_step",
        by_micro_batches("state.backward(-loss, 1 / len(micros))"),
        "it goes uphill",
    ),
    WrongPlugin(
        "it knows which tokens are frequent and not what follows what", "overfit",
        (after(EMBEDDED, "x = 0 * x + x.new_ones(x.shape[-1])"),),
        "what is not learnt",
    ),
    WrongPlugin(
        "it trains on the current token and reports the loss of the next", "train_step",
        trained(
            "total = torch.zeros(())",
            "micros = state.split(batch)",
            "for micro in micros:",
            "    logits = state.model(micro.inputs).flatten(0, 1)",
            "    state.backward(F.cross_entropy(logits, micro.inputs.flatten()), 1 / len(micros))",
            "    total += F.cross_entropy(logits, micro.targets.flatten()).detach() / len(micros)",
            "state.update()",
            "return total",
        ),
        "the tokens read",
    ),
)  # fmt: skip

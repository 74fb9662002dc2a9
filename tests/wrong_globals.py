"""Wrong plugins that change torch, the program or the process around them: see wrong_plugins.py."""

from __future__ import annotations

from rotary_edits import BUILT, EMBEDDED, GENERATED, NORM, TRAINED, WrongPlugin, after, beside, imported, trained


def built(*lines: str) -> tuple[str, str]:
    """Those lines in ``build``."""
    return BUILT, "\n".join([*("    " + line for line in lines), BUILT])


PATCHED = (
    WrongPlugin(
        "build replaces a linear layer's forward", "side_effects",
        (built("nn.Linear.forward = lambda self, x: F.linear(x, self.weight, self.bias)"),),
        "torch.nn.modules.linear.Linear.forward",
    ),
    WrongPlugin(
        "build replaces the cross-entropy", "side_effects",
        (built("entropy = F.cross_entropy", "F.cross_entropy = lambda *args, **kwargs: entropy(*args, **kwargs)"),),
        "torch.nn.functional.cross_entropy",
    ),
    WrongPlugin(
        "build replaces a method of tensors", "side_effects",
        (built("add = torch.Tensor.add", "torch.Tensor.add = lambda *args, **kwargs: add(*args, **kwargs)"),),
        "torch.Tensor.add",
    ),
    WrongPlugin(
        "importing it replaces torch's compiler", "side_effects",
        (beside("", "torch.compile = lambda model, *args, **kwargs: model"),),
        "importing",
    ),
    WrongPlugin(
        "importing it replaces the scorer", "side_effects",
        (imported("import archbench.measure.scoring\n"),
         beside("", "archbench.measure.scoring.score = lambda *args, **kwargs: 0.0")),
        "archbench.measure.scoring.score",
    ),
    WrongPlugin(
        "train_step replaces the update of every run", "side_effects",
        trained("update = type(state).update", "type(state).update = lambda self: update(self)",
                "return next_token_step(state, batch)"),
        "archbench.training.state.TrainState.update",
    ),
    WrongPlugin(
        "generate replaces the clock", "side_effects",
        (imported("import time\n"), (GENERATED, f"    time.perf_counter_ns = lambda: 0\n{GENERATED}")),
        "time.perf_counter_ns",
    ),
    WrongPlugin(
        "the forward pass replaces SGD's step", "side_effects",
        (after(EMBEDDED, "torch.optim.SGD.step = lambda self, closure=None: None"),),
        "torch.optim.sgd.SGD.step",
    ),
)  # fmt: skip

SWITCHED = (
    WrongPlugin(
        "importing it lowers the precision of every product", "side_effects",
        (beside("", 'torch.set_float32_matmul_precision("medium")'),),
        "importing",
        on_some_machines=("cached_decode", "batch_invariance", "causality", "generate"),
    ),
    WrongPlugin(
        "importing it makes threads fewer", "side_effects",
        (beside("", "torch.set_num_threads(1 + torch.get_num_threads() % 2)"),),
        "importing",
    ),
    WrongPlugin(
        "build lets CUDA round to TF32", "side_effects",
        (built("torch.backends.cudnn.allow_tf32 = not torch.backends.cudnn.allow_tf32"),),
        "torch.backends.cudnn.allow_tf32",
    ),
    WrongPlugin(
        "build switches a kernel of attention off", "side_effects",
        (built("torch.backends.cuda.enable_flash_sdp(False)"),),
        "torch.backends.cuda.flash_sdp_enabled",
    ),
    WrongPlugin(
        "train_step leaves autocast on", "side_effects",
        ((TRAINED, f'    torch.set_autocast_enabled("cpu", True)\n{TRAINED}'),),
        "autocast",
        on_some_machines=("train_step",),
    ),
    WrongPlugin(
        "small numbers become zero", "side_effects",
        (built("torch.set_flush_denormal(True)"),),
        "denormal",
    ),
    WrongPlugin(
        "a hook on every module is left behind", "side_effects",
        (built("nn.modules.module.register_module_forward_hook(lambda module, args, output: None)"),),
        "hooks on every module",
    ),
    WrongPlugin(
        "a mode for every function is left behind", "side_effects",
        (imported("from torch.overrides import TorchFunctionMode\n"),
         beside("", "", "class Mode(TorchFunctionMode):",
                "    def __torch_function__(self, func, types, args=(), kwargs=None):",
                "        return func(*args, **(kwargs or {}))"),
         built("Mode().__enter__()")),
        "mode",
    ),
    WrongPlugin(
        "garbage is no longer collected", "side_effects",
        (imported("import gc\n"), built("gc.disable()")),
        "garbage",
    ),
    WrongPlugin(
        "anomalies are looked for from now on", "side_effects",
        (built("torch.autograd.set_detect_anomaly(True)"),),
        "anomal",
    ),
)  # fmt: skip

WEIGHTS = (
    WrongPlugin(
        "generate trains on the prompt", "side_effects",
        ((GENERATED, f"    with torch.no_grad():\n        model.output.weight[prompt] += 1e-3\n{GENERATED}"),),
        "generate changed",
    ),
    WrongPlugin(
        "evaluation keeps what it has read", "side_effects",
        (after(NORM, 'self.register_buffer("seen", torch.zeros(config.vocab_size))'),
         after(EMBEDDED, "if not self.training and x.device.type != 'meta' and not torch.compiler.is_compiling():",
               "    self.seen.index_put_((tokens,), self.seen.new_tensor(1.0))")),
        "'seen'",
    ),
)  # fmt: skip

GLOBALS = (*PATCHED, *SWITCHED, *WEIGHTS)

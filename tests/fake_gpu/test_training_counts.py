"""What an update of the published GPT-1 asks of the GPU, exactly: B 32, T 512, bfloat16, with its dropout."""

from __future__ import annotations

import pytest
import torch
from counts import Counts, by_name, counted

from archbench.config import TrainingConfig
from archbench.data.batches import Batch
from archbench.kernels import attention_backend
from archbench.plugin.registry import load
from archbench.training.state import TrainState

B, T = 32, 512


def of_an_update(name: str, preset: str = "paper") -> tuple[Counts, dict[str, int]]:
    """Counts of the third update, with the batch on the GPU; and its kernels by name."""
    architecture = load(name)
    config = architecture.info.presets[preset]
    recipe = TrainingConfig(batch_size=B, learning_rate=1e-4, steps=10)
    model = architecture.build(config).cuda()
    state = TrainState.create(model, recipe, device=torch.device("cuda"), dtype="bfloat16")
    tokens = torch.zeros(B, T, dtype=torch.int64, device="cuda")
    batch = Batch(tokens, tokens)
    for _ in range(2):  # the first one shows which weights products use, compiles and allocates
        architecture.train_step(state, batch)
    torch.cuda.synchronize()
    seen = counted(lambda: architecture.train_step(state, batch))
    return seen, by_name()


@pytest.fixture(scope="module")
def gpt1() -> tuple[Counts, dict[str, int]]:
    return of_an_update("gpt1")


def test_an_update_waits_for_nothing(gpt1: tuple[Counts, dict[str, int]]) -> None:
    seen, _ = gpt1
    assert (seen.syncs, seen.to_host, seen.to_device) == (0, 0, 0)


def test_weights_and_their_gradients_are_cast_together(gpt1: tuple[Counts, dict[str, int]]) -> None:
    """96 weights and biases of products: one by one they were 192 casts, besides 86 of activations."""
    _, names = gpt1
    together = sum(count for name, count in names.items() if "CopyFunctor" in name)
    alone = sum(count for name, count in names.items() if "bfloat16_copy" in name or "direct_copy" in name)
    assert (together, alone) == (10, 6)


def test_each_residual_with_its_norm_is_a_kernel_forward_and_one_backward(gpt1: tuple[Counts, dict[str, int]]) -> None:
    """12 blocks with two each; and one kernel for the loss of each of three chunks of logits."""
    seen, names = gpt1
    assert seen.triton == 24 + 24 + 3
    # What is left of them is of the embedding.
    assert sum(count for name, count in names.items() if "dropout" in name or "masked_scale" in name) == 2
    assert not any("layer_norm" in name or "SoftMax" in name for name in names)


def test_clipping_is_in_the_optimizers_kernel(gpt1: tuple[Counts, dict[str, int]]) -> None:
    _, names = gpt1
    assert not any("BinaryOpScalarTensorFunctor" in name for name in names)
    assert sum(count for name, count in names.items() if "FusedAdam" in name) == 9


def test_launches_of_an_update(gpt1: tuple[Counts, dict[str, int]]) -> None:
    """Before the first of these it was 702 kernels, 153 products and 58 memsets. Biases of 24 products get their
    gradient by a product, the other 24 by the kernels."""
    seen, _ = gpt1
    assert (seen.launches, seen.triton, seen.products, seen.memsets) == (187, 51, 177, 10)


def test_the_kernel_of_attention_trains_with_dropout_in_as_many_launches() -> None:
    with attention_backend("triton"):
        seen, names = of_an_update("gpt1")
    assert (seen.launches, seen.triton, seen.products, seen.memsets) == (139, 51 + 12 * 4, 177, 10)
    assert seen.syncs == seen.to_host == seen.to_device == 0
    assert sum(count for name, count in names.items() if "dropout" in name) == 1, "that of the embedding"

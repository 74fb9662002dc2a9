"""A cross-cutting plugin: every hook here wraps the architecture's own."""

import time

from archbench import hookimpl

seconds = []


@hookimpl(wrapper=True)
def train_step(state, batch):
    start = time.perf_counter()
    loss = yield
    seconds.append(time.perf_counter() - start)
    return loss

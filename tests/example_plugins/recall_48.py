"""Recall of 8 pairs among 48 keys, a reference point of archbench probe: narrow states cannot tell so many apart.

The task ``recall`` with three times its keys, and examples of 8 pairs alone. With its 16 keys a linear attention of
width 8 has room for all of them.
"""

from functools import partial

from archbench_plugins.tasks.recall import VALUES, T, draw

from archbench import Task, hookimpl

KEYS = 48
PAIRS = 8
eight = partial(draw, pairs=PAIRS, n_keys=KEYS)


@hookimpl
def tasks():
    return [
        Task(
            name="recall-48",
            summary="Which of 16 values stood beside this key of 48? Every key is asked for once",
            source="Arora et al. 2023, Zoology (multi-query associative recall), arXiv:2312.04927",
            vocab_size=KEYS + VALUES + 1,
            context_length=T,
            train=eight,
            tests={f"{PAIRS} pairs": eight},
            chance={f"{PAIRS} pairs": 1 / PAIRS},
            updates=1200,
        )
    ]

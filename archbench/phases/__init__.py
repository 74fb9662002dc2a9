"""The phases of a run. Each runs in a process of its own, so that its memory and its warm-up are its own."""

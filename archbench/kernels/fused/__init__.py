"""Causal attention as Triton kernels: the only modules that import triton when they are imported."""

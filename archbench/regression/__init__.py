"""Does a change make an architecture cost more than it did? Exact counts, and CPU time by a stated rule.

``archbench regress BASE_REV HEAD_REV``, and ``pytest --pyargs archbench.testing --archbench-arch NAME --benchmark-only
--archbench-baseline save`` or ``compare``.
"""

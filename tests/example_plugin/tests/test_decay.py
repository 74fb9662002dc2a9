from archbench.testing import ArchitectureChecks


class TestDecay(ArchitectureChecks):
    architecture = "decay"

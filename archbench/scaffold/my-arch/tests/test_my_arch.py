from archbench.testing import ArchitectureChecks


class TestMyArch(ArchitectureChecks):
    architecture = "my-arch"

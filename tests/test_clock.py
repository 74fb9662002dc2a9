"""The clocks: the CPU's agrees with the wall, and the GPU's reads events on the stream with a flushed L2."""

from __future__ import annotations

import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from archbench.errors import DeviceError
from archbench.measure.clock import LONGEST_HOLD, CPUClock, CUDAClock, clock_for, device_seconds_of, submitted


def test_the_cpu_clock_tells_seconds() -> None:
    clock = CPUClock()
    start = clock.mark()
    time.sleep(0.05)
    # Never less than was slept; how much more depends on what else the machine does.
    assert 0.05 <= clock.seconds(start, clock.mark()) < 5


class FakeCUDA:
    """The little of torch.cuda the clock uses: a stream whose time moves by hand, in milliseconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []
        fake = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing, "an event without timing cannot be read"

            def record(self, stream: object) -> None:
                assert stream == "stream of cpu"
                self.at = fake.now
                fake.log.append("record")

            def synchronize(self) -> None:
                fake.log.append("wait for event")

            def elapsed_time(self, end: Event) -> float:
                return end.at - self.at

        self.Event = Event

    def current_stream(self, device: object) -> str:
        return f"stream of {device}"

    def synchronize(self, device: object) -> None:
        self.log.append("synchronize")

    def get_device_properties(self, device: object) -> SimpleNamespace:
        return SimpleNamespace(L2_cache_size=1000)


def test_the_cuda_clock_reads_events_of_its_devices_stream_in_seconds() -> None:
    cuda = FakeCUDA()
    clock = CUDAClock(torch.device("cpu"), cuda)
    start = clock.mark()
    cuda.now += 250.0
    end = clock.mark()
    assert cuda.log == ["record", "record"], "a mark must not make the host wait"
    assert clock.seconds(start, end) == pytest.approx(0.25)
    assert cuda.log[-1] == "wait for event"
    clock.synchronize()
    assert cuda.log[-1] == "synchronize"


class SimulatedGPU(FakeCUDA):
    """A host and a GPU, each with its time in seconds: the GPU does in order what it was told, and never before."""

    def __init__(self) -> None:
        super().__init__()
        self.host = self.gpu = 0.0
        fake = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None: ...

            def record(self, stream: object) -> None:
                fake.log.append("event")
                self.at = fake.gpu = max(fake.gpu, fake.host)

            def query(self) -> bool:
                return fake.host >= self.at

            def synchronize(self) -> None:
                fake.host = max(fake.host, self.at)

            def elapsed_time(self, end: Event) -> float:
                return 1e3 * (end.at - self.at)

        self.Event = Event  # type: ignore[assignment]

    def submit(self, seconds: float) -> None:
        self.gpu = max(self.gpu, self.host) + seconds

    def synchronize(self, device: object) -> None:
        self.host = max(self.host, self.gpu)

    def device(self, device: object) -> nullcontext[None]:
        return nullcontext()

    def _sleep(self, cycles: int) -> None:
        self.log.append("sleep")
        self.submit(cycles / 1.2e9)


@pytest.mark.parametrize("host_delay", [0.0, 0.2e-3, 0.6e-3, 9e-3])
def test_a_kernels_time_does_not_depend_on_how_long_the_host_takes_to_submit_it(host_delay: float) -> None:
    gpu = SimulatedGPU()
    clock = CUDAClock(torch.device("cpu"), gpu)

    def work() -> None:
        gpu.log.append("kernel")
        gpu.host += host_delay
        gpu.submit(40e-6)

    assert device_seconds_of(work, clock) == pytest.approx(40e-6)
    assert gpu.log[-4:] == ["sleep", "event", "kernel", "event"]
    assert submitted(work, clock)[1].gapless


def test_work_that_waits_for_the_gpu_is_said_to_contain_the_hosts_time() -> None:
    gpu = SimulatedGPU()
    clock = CUDAClock(torch.device("cpu"), gpu)

    def work() -> None:
        gpu.synchronize(None)
        gpu.host += 1e-3
        gpu.submit(40e-6)

    assert device_seconds_of(work, clock) == pytest.approx(1.04e-3)
    assert not submitted(work, clock)[1].gapless
    assert 1.0 > gpu.host > LONGEST_HOLD, "it tries longer holds, up to the longest"


def test_flushing_overwrites_twice_the_l2_and_allocates_once() -> None:
    clock = CUDAClock(torch.device("cpu"), FakeCUDA())
    clock.flush()
    scratch = clock._scratch
    assert scratch is not None
    assert scratch.nbytes == 2000
    scratch.fill_(1)
    clock.flush()
    assert clock._scratch is scratch
    assert int(scratch.sum()) == 0


def test_a_device_without_a_clock_is_refused() -> None:
    assert isinstance(clock_for("cpu"), CPUClock)
    with pytest.raises(DeviceError, match="device mps: archbench has no clock for it"):
        clock_for("mps")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_cuda_without_a_gpu_is_a_clear_error() -> None:
    with pytest.raises(DeviceError, match=r"torch finds no CUDA GPU. Use --device cpu"):
        clock_for("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_a_product_takes_the_time_its_size_takes() -> None:
    clock = clock_for("cuda")
    a = torch.randn(4096, 4096, device="cuda")
    b = torch.randn(1024, 1024, device="cuda")

    def seconds(x: torch.Tensor) -> float:
        clock.flush()
        start = clock.mark()
        x @ x
        return clock.seconds(start, clock.mark())

    seconds(a), seconds(b)
    assert min(seconds(a) for _ in range(5)) > 8 * min(seconds(b) for _ in range(5))

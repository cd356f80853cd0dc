"""What the process may use of the processor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from drl.runtime import machine


def fake_files(monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path, ""))


def test_this_machine_has_processors() -> None:
    assert 1 <= machine.default_threads() <= machine.physical_cores()
    assert machine.physical_cores() <= len(machine.available_cpus())
    assert machine.cpu_model()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_pinned_process_takes_its_own_cores_only() -> None:
    everything = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(everything)})
        assert machine.default_threads() == 1
    finally:
        os.sched_setaffinity(0, everything)


def test_hardware_threads_of_one_core_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_cpus", lambda: frozenset(range(4)))
    place = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    fake_files(monkeypatch, {place.format(cpu): f"{cpu % 2},{cpu % 2 + 2}" for cpu in range(4)})
    assert machine.physical_cores() == 2
    assert machine.default_threads() == 2


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"/sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ({"/sys/fs/cgroup/cpu.max": "max 100000"}, None),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            2.0,
        ),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            None,
        ),
        ({}, None),
    ],
)
def test_container_quotas_are_read(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], quota: float | None
) -> None:
    fake_files(monkeypatch, files)
    assert machine.cpu_quota() == quota


def test_a_quota_limits_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "physical_cores", lambda: 6)
    for quota, threads in ((None, 6), (0.5, 1), (2.5, 2), (64.0, 6)):
        monkeypatch.setattr(machine, "cpu_quota", lambda quota=quota: quota)
        assert machine.default_threads() == threads


def test_instruction_sets_and_memory_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_files(
        monkeypatch,
        {
            "/proc/cpuinfo": "model name\t: Some CPU\nflags\t\t: fpu avx2 avx512f sse4_2\n",
            "/proc/meminfo": "MemTotal:       1000 kB\nMemAvailable:    250 kB",
        },
    )
    assert machine.cpu_model() == "Some CPU"
    assert machine.instruction_sets() == ["avx2", "avx512f"]
    assert machine.memory() == (1_024_000, 256_000)


def test_a_system_without_such_files_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_files(monkeypatch, {})
    assert machine.instruction_sets() == []
    assert machine.memory() is None
    assert machine.default_threads() >= 1
    assert machine._read("/does/not/exist") == ""


def test_unreadable_text_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xff ok\n")
    assert machine._read(str(tmp_path / "file")).endswith("ok")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no system call to pin a process")
def test_threads_that_share_a_core_get_half_of_their_time() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert machine.share_of_cores(2, seconds=0.05) < 0.6
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.skipif(len(machine.available_cpus()) < 2, reason="no two processors to share")
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no system call to pin a process")
def test_one_busy_processor_of_several_counts() -> None:
    before = os.sched_getaffinity(0)
    first = min(before)
    busy = f"import os; os.sched_setaffinity(0, {{{first}}}); print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            assert machine.share_of_cores(2, seconds=0.2) < 0.75
        finally:
            process.kill()
    assert os.sched_getaffinity(0) == before


def test_more_threads_than_processors_share_them() -> None:
    processors = len(machine.available_cpus())
    assert machine.share_of_cores(4 * processors) == 0.25

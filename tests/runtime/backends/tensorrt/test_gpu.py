"""The real libraries on a real GPU: what the fake cannot tell.

Skipped where there is none. On a machine with a GPU, after `pip install "drl[rtx,cuda,export,dev]"`
or with NVIDIA's TensorRT in the place of `rtx`:

    pytest -rs tests/runtime/backends/tensorrt/test_gpu.py
"""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drl.export.tensorrt.builder import build_engines
from drl.export.tensorrt.options import BuildOptions
from drl.runtime import Bundle, Engine
from drl.runtime.backends.tensorrt.backend import TensorRTBackend
from drl.runtime.backends.tensorrt.library import (
    FLAVOURS,
    Flavour,
    builds_without_gpu,
    import_library,
    installed_flavours,
    takes_plugins,
    targets,
    title,
)
from drl.runtime.gpu import find_gpus
from tests.models import random_prompts
from tests.runtime.backends.tensorrt.agreement import assert_greedy_agrees, share_alike

PROMPTS = [prompt[:24] for prompt in random_prompts(10)]
COMMAND = "run `pytest -rs tests/runtime/backends/tensorrt/test_gpu.py` on a machine that has it"


def missing(flavour: Flavour) -> str:
    """What this machine lacks for a flavour; nothing if it can run engines."""
    report = find_gpus()
    if not report.gpus:
        return report.fault
    if flavour not in installed_flavours():
        return f"{title(flavour)} is not installed"
    here = report.gpus[0].compute_capability
    if builds_without_gpu(flavour) and here not in targets(import_library(flavour)):
        return f"{title(flavour)} has no engines for compute capability {here}"
    return ""


@pytest.fixture(scope="module", params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> Flavour:
    found: Flavour = request.param
    if reason := missing(found):
        pytest.skip(f"NOT TESTED on a GPU: {reason}; {COMMAND}")
    return found


@pytest.fixture(scope="module", params=[False, True], ids=["bodies", "plugins"])
def built(
    request: pytest.FixtureRequest,
    flavour: Flavour,
    tiny_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    plugins: bool = request.param
    if plugins and not takes_plugins(flavour):
        pytest.skip(f"engines of {title(flavour)} hold no plugins")
    folder = tmp_path_factory.mktemp("gpu") / "bundle"
    shutil.copytree(tiny_bundle, folder)
    build_engines(Bundle.load(folder), BuildOptions(flavour, plugins=plugins, candidates=8))
    return folder


@pytest.fixture
def engine(built: Path, flavour: Flavour) -> Iterator[Engine]:
    with open_engine(built, flavour) as engine:
        yield engine


@pytest.fixture(scope="module")
def exact(tiny_bundle: Path) -> Iterator[Engine]:
    with Engine.from_bundle(tiny_bundle, threads=1) as engine:
        yield engine


def open_engine(folder: Path, flavour: Flavour) -> Engine:
    """The engine of a flavour alone."""
    from drl.runtime.backends.tensorrt.opening import open_tensorrt

    bundle = Bundle.load(folder)
    return Engine(bundle, open_tensorrt(bundle, flavour), 16)


@pytest.mark.parametrize("path", ["fast", "balanced", "full", "auto"])
def test_greedy_tokens_are_the_cpus(engine: Engine, exact: Engine, path: str) -> None:
    for _ in range(2):  # the second time from CUDA graphs
        assert_greedy_agrees(exact, engine, PROMPTS, path=path, max_new_tokens=24)


def test_searches_samples_and_prefixes_agree(engine: Engine, exact: Engine) -> None:
    given: list[dict[str, Any]] = [
        {"num_beams": 4},
        {"temperature": 1.2, "top_k": 5, "seed": 1},
        {"temperature": 1.2, "top_k": 30, "seed": 1},
        {"prefixes": [prompt[:5] for prompt in PROMPTS]},
    ]
    for options in given:
        each = {"max_new_tokens": 12, "path": "full", **options}
        assert share_alike(engine.generate(PROMPTS, **each), exact.generate(PROMPTS, **each)) > 0.7


def test_steps_run_from_cuda_graphs(engine: Engine) -> None:
    engine.generate(PROMPTS, max_new_tokens=24)
    backend = engine.backend
    assert isinstance(backend, TensorRTBackend)
    assert len(backend._graphs) > 0


def test_what_an_application_does_on_other_streams_changes_nothing(engine: Engine) -> None:
    import cupy

    expected = engine.generate(PROMPTS, max_new_tokens=16)
    own, stop = cupy.cuda.Stream(non_blocking=True), threading.Event()

    def disturb() -> None:
        with own:
            while not stop.is_set():
                block = cupy.random.random((512, 512), dtype=cupy.float32)
                block @ block
                own.synchronize()

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        with own:  # the caller's current stream is another one, too
            found = [engine.generate(PROMPTS, max_new_tokens=16) for _ in range(5)]
        cupy.zeros(10)  # and the default stream
    finally:
        stop.set()
        thread.join()
    assert all(share_alike(each, expected) == 1 for each in found)


def test_two_engines_run_side_by_side(built: Path, flavour: Flavour, engine: Engine) -> None:
    expected = engine.generate(PROMPTS, max_new_tokens=16)
    results: dict[int, Any] = {}
    with open_engine(built, flavour) as other:

        def work(number: int) -> None:
            which = (engine, other)[number % 2]
            results[number] = which.generate(PROMPTS, max_new_tokens=16)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(share_alike(results[number], expected) == 1 for number in range(4))


def test_closing_gives_the_memory_back(built: Path, flavour: Flavour) -> None:
    import cupy

    with open_engine(built, flavour) as engine:  # what stays for the process itself
        engine.generate(PROMPTS, max_new_tokens=8)
    del engine
    before, _ = cupy.cuda.runtime.memGetInfo()
    for _ in range(3):
        with open_engine(built, flavour) as engine:
            engine.generate(PROMPTS, max_new_tokens=8)
        del engine
    after, _ = cupy.cuda.runtime.memGetInfo()
    assert before - after < 32 << 20

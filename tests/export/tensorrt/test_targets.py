"""Which GPUs are built for."""

from types import SimpleNamespace

import pytest

from drl.export.tensorrt.options import BuildOptions
from drl.export.tensorrt.targets import check_flavour, choose_targets
from drl.runtime.backends.tensorrt.manifest import EngineOptions
from drl.runtime.errors import ExportError
from drl.runtime.gpu import Gpu, GpuReport

RTX = SimpleNamespace(
    ComputeCapability=SimpleNamespace(
        __members__=dict.fromkeys(["NONE", "CURRENT", "SM75", "SM89", "SM120"])
    )
)
NONE_HERE = GpuReport(None, (), "there is no NVIDIA driver")


def machine(capability: str) -> GpuReport:
    return GpuReport("13.0", (Gpu("GPU", capability, 1 << 30),))


def test_rtx_builds_for_what_is_named_once_each() -> None:
    options = BuildOptions("tensorrt-rtx", ("12.0", "8.9", "12.0"))
    assert choose_targets(options, RTX, NONE_HERE) == ("12.0", "8.9")


def test_rtx_builds_for_the_gpu_that_is_here() -> None:
    assert choose_targets(BuildOptions("tensorrt-rtx"), RTX, machine("8.9")) == ("8.9",)


def test_without_a_gpu_and_without_a_name_the_choices_are_told() -> None:
    with pytest.raises(
        ExportError, match=r"no NVIDIA driver.*--compute-capability 7\.5,8\.9,12\.0"
    ):
        choose_targets(BuildOptions("tensorrt-rtx"), RTX, NONE_HERE)


def test_rtx_has_no_kernels_for_hopper() -> None:
    with pytest.raises(ExportError, match=r"capability 9\.0; it builds for 7\.5, 8\.9, 12\.0"):
        choose_targets(BuildOptions("tensorrt-rtx", ("9.0",)), RTX, NONE_HERE)
    with pytest.raises(
        ExportError, match=r"9\.0, which this machine's GPU has.*--flavour tensorrt"
    ):
        choose_targets(BuildOptions("tensorrt-rtx"), RTX, machine("9.0"))


def test_tensorrt_builds_only_where_the_gpu_is() -> None:
    assert choose_targets(BuildOptions("tensorrt"), None, machine("9.0")) == ("9.0",)
    assert choose_targets(BuildOptions("tensorrt", ("9.0",)), None, machine("9.0")) == ("9.0",)
    with pytest.raises(ExportError, match=r"capability 9\.0, and not for 8\.9"):
        choose_targets(BuildOptions("tensorrt", ("8.9",)), None, machine("9.0"))
    with pytest.raises(ExportError, match=r"no NVIDIA driver.*--flavour rtx"):
        choose_targets(BuildOptions("tensorrt"), None, NONE_HERE)


def test_fp8_needs_a_gpu_that_has_it() -> None:
    options = BuildOptions("tensorrt-rtx", ("8.9", "7.5"), precision="fp8")
    with pytest.raises(ExportError, match=r"7\.5 have no fp8"):
        choose_targets(options, RTX, NONE_HERE)
    capable = BuildOptions("tensorrt-rtx", ("8.9", "12.0"), precision="fp8")
    assert choose_targets(capable, RTX, NONE_HERE) == ("8.9", "12.0")


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (BuildOptions("tensorrt-rtx", plugins=True), "takes no plugins"),
        (
            BuildOptions("tensorrt-rtx", engine=EngineOptions(hardware_compatible=True)),
            "--compute-capability instead",
        ),
        (
            BuildOptions("tensorrt-rtx", engine=EngineOptions(version_compatible=True)),
            "run on the version that built them",
        ),
    ],
)
def test_rtx_refuses_what_it_does_not_have(options: BuildOptions, fragment: str) -> None:
    with pytest.raises(ExportError, match=fragment):
        check_flavour(options)


def test_tensorrt_takes_all_of_it() -> None:
    engine = EngineOptions(hardware_compatible=True, version_compatible=True)
    check_flavour(BuildOptions("tensorrt", plugins=True, engine=engine))
    check_flavour(BuildOptions("tensorrt-rtx", engine=EngineOptions(weight_streaming=True)))

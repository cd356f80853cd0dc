"""What engines take, read from their manifest."""

from typing import Any

import numpy as np
import pytest

from drl.runtime.backends.tensorrt.manifest import (
    EngineInfo,
    EngineManifest,
    EngineOptions,
    ProfileInfo,
)
from drl.runtime.backends.tensorrt.sizes import EngineSizes, kept_multiple
from drl.runtime.backends.tensorrt.store import EngineFolder
from drl.runtime.errors import BackendError
from drl.runtime.manifest import Manifest, parse_manifest
from tests.runtime.toy import manifest_document


def toy() -> Manifest:
    return parse_manifest(manifest_document())


def folder(capacity: int = 48, **changes: tuple[int, int, int]) -> Any:
    """Engines for the toy's paths; changes are `encoder_S=(…)` or `full_B=(…)`."""
    engines = {}
    for name in (
        "encoder",
        *(f"{s}.{p}" for p in ("fast", "mid", "full") for s in ("bridge", "decoder")),
    ):
        stack, _, path = name.partition(".")
        if stack == "decoder":
            dims = {"B": (1, 4, 16), "R": (1, 4, 12), "K": (1, 8, 40)}
            kinds = {"prefill": dims | {"T": (1, 4, 10)}, "step": dims | {"T": (1, 1, 1)}}
        else:
            kinds = {"any": {"B": (1, 4, 12), "S": (1, 8, 40)}}
        for label, sizes in changes.items():
            whose, dim = label.split("_")
            if whose in (stack, path):
                kinds = {
                    k: v | {dim: sizes} if dim in v and dim != "T" else v for k, v in kinds.items()
                }
                if dim == "T":
                    kinds = {k: v | {dim: sizes} for k, v in kinds.items()}
        profiles = tuple(ProfileInfo(kind, {}, dims) for kind, dims in kinds.items())
        engines[name] = EngineInfo(f"{name}.engine", 0, "", "", (), (), profiles, 0.0)
    manifest = EngineManifest(
        "tensorrt", "11", "8.9", "fp16", capacity, 8, {}, EngineOptions(), "", (), engines
    )
    return EngineFolder(None, manifest, "drl-build BUNDLE")  # type: ignore[arg-type]


def test_limits_are_those_that_every_path_keeps() -> None:
    sizes = EngineSizes.of(folder(full_B=(1, 4, 6), bridge_S=(1, 8, 30)), toy())
    assert (sizes.rows, sizes.sources, sizes.source_length, sizes.capacity) == (6, 12, 30, 48)
    limits = sizes.limits
    assert limits.rows is not None
    assert limits.rows.remedy == "build larger engines: `drl-build BUNDLE --batch MIN,OPT,MAX`"


def test_buckets_are_powers_of_two_up_to_what_fits() -> None:
    sizes = EngineSizes.of(folder(), toy())
    assert [sizes.bucket(slots, 1) for slots in range(1, 13)] == [1, 2, 4, 4, 8, 8, 8, 8, *[12] * 4]
    assert [sizes.bucket(slots, 3) for slots in range(1, 6)] == [1, 2, 4, 4, 5]
    for width in (1, 2, 3, 5, 16):
        found = [sizes.bucket(slots, width) for slots in range(1, 40)]
        assert found == sorted(found)
        assert all(sizes.bucket(slots, width) == slots for slots in found)
        assert all(bucket >= slots for slots, bucket in enumerate(found, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_S": (8, 16, 40)}, r"engine of encoder takes no S below 8.*--source 1,OPT,MAX"),
        ({"decoder_B": (4, 8, 16)}, r"decoder\.fast takes no B below 4.*--batch 1,OPT,MAX"),
        ({"full_R": (2, 8, 16)}, r"decoder\.full takes no R below 2.*--sources 1,OPT,MAX"),
    ],
)
def test_engines_that_refuse_one_are_refused(
    change: dict[str, tuple[int, int, int]], message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        EngineSizes.of(folder(**change), toy())


def test_a_cache_whose_rows_tensorrt_does_not_take_is_refused() -> None:
    message = r"cache of 47 positions is no multiple of 16, .* --cache POS"
    with pytest.raises(BackendError, match=message):
        EngineSizes.of(folder(capacity=47), toy())


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 1), (2, 4), (1, 24), (3, 12), (8, 64), (5, 7)])
def test_with_rounded_kept_states_every_source_begins_where_tensorrt_takes_it(
    heads: int, head_dim: int
) -> None:
    multiple = kept_multiple(heads, head_dim)
    assert multiple % 8 == 0
    smaller = [
        m for m in range(8, multiple, 8) if np.float16().nbytes * heads * head_dim * m % 256 == 0
    ]
    assert np.float16().nbytes * heads * head_dim * multiple % 256 == 0
    assert not smaller


@pytest.mark.parametrize(("least", "good"), [(1, True), (2, True), (3, False)])
def test_a_prefill_must_take_two_tokens(least: int, good: bool) -> None:
    """The shortest prefix that is no step of one token, or what is left of one that was cut."""
    made = folder()
    for engine in made.manifest.engines.values():
        for profile in engine.profiles:
            if profile.name == "prefill":
                profile.dims["T"] = (least, 4, 10)
    if good:
        assert EngineSizes.of(made, toy()).capacity == 48
    else:
        message = r"decoder\.fast takes no T of 2.*`drl-build BUNDLE --new-tokens 1,OPT,MAX`"
        with pytest.raises(BackendError, match=message):
            EngineSizes.of(made, toy())

"""What an export can be asked for; light to import, so that the command answers at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from drl.runtime.errors import ExportError

Target = Literal["portable", "ort-cpu"]
Precision = Literal["fp32", "int8", "int8-block", "int4", "int4+int8-head"]
KvCache = Literal["fp32", "int8"]


@dataclass(frozen=True)
class ExportOptions:
    """What to make of a checkpoint.

    Attributes:
        target: `portable` graphs run on any ONNX runtime of opset 24; `ort-cpu` ones use ONNX
            Runtime's own attention kernel over a shared cache.
        precision: Of weights and of the products with them; all else is fp32. `int8` has one
            scale per output, `int8-block` and `int4` have one step per 32 inputs. A tied head of 8
            bits is stored once for head and embedding; `int4` keeps the embedding fp32.
        kv_cache: Of the keys and values that attention reads, in a quantised bundle: `int8` has a
            scale for each head of each position.
        force: Whether to replace an existing bundle.
        verify: Whether to hold the bundle against the eager model.
        verify_against_transformers: Whether to hold the eager model against transformers too.
        rename: Our tensor names to the checkpoint's, where those differ; see `load_checkpoint`.
        evaluate: JSON lines of source and target, to count the right answers of a quantised bundle
            and of an fp32 one; see `read_pairs`.

    Raises:
        ExportError: Two of them do not go together.
    """

    target: Target = "ort-cpu"
    precision: Precision = "fp32"
    kv_cache: KvCache = "fp32"
    force: bool = False
    verify: bool = True
    verify_against_transformers: bool = False
    rename: Mapping[str, str] | None = None
    evaluate: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.quantized and self.target == "portable":
            raise ExportError(
                f"a portable bundle has no precision {self.precision}: it must run on any ONNX "
                "runtime, and quantised operators are told apart by function overloads, which some "
                "ignore and then compute something else; give --target ort-cpu, or --precision fp32"
            )
        if self.kv_cache != "fp32" and not self.quantized:
            raise ExportError(
                f"--kv-cache {self.kv_cache} is for quantised bundles, whose attention our kernels "
                "run; give --precision int8, or --kv-cache fp32"
            )
        if self.evaluate is not None and not self.quantized:
            raise ExportError(
                "--evaluate compares a quantised bundle with an fp32 one; give --precision int8"
            )
        if self.evaluate is not None and not self.verify:
            raise ExportError("--evaluate is part of what --no-verify leaves out; give one of them")

    @property
    def quantized(self) -> bool:
        """Whether weights are rounded."""
        return self.precision != "fp32"


DEFAULTS = ExportOptions()

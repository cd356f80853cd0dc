"""The engines that a bundle is compared with, and how each is installed."""

from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class PeerSpec:
    """An engine to start.

    Attributes:
        name: For people.
        file: The worker's module.
        variant: What the module is told: a precision or a mode.
        precision: Of weights and arithmetic. Greedy tokens of `fp32` are compared with ours.
        environment: Its environment's folder below that of all environments; empty for ours,
            which run in this one.
        requirements: What its environment needs, behind torch.
    """

    name: str
    file: Path
    variant: str
    precision: str
    environment: str
    requirements: tuple[str, ...]

    @property
    def is_ours(self) -> bool:
        """Whether it is this project's runtime."""
        return not self.environment

    def python(self, environments: Path) -> Path:
        """The Python of its environment, which may not be there."""
        return environments / self.environment / "bin" / "python"


def _spec(name: str, module: str, variant: str, environment: str, *requirements: str) -> PeerSpec:
    precision = "int8" if variant == "int8" else "fp32"
    file = _HERE / f"{module}.py"
    return PeerSpec(name, file, variant, precision, environment, requirements)


_TRANSFORMERS = ("with_transformers", "transformers", "transformers>=5.0")
_OPTIMUM = ("with_optimum", "optimum", "optimum[onnxruntime]")
# The scripts that ONNX Runtime ships trace the tuples that transformers once kept its cache in.
_BEAM_SEARCH = (
    "with_ort_beam_search",
    "ort-beam-search",
    *("onnx", "onnxruntime", "onnxscript", "transformers==4.46.3"),
    *("coloredlogs", "psutil", "sentencepiece", "sympy"),
)
_CTRANSLATE2 = ("with_ctranslate2", "ctranslate2", "ctranslate2", "transformers==4.57.1")

PEERS = tuple(
    _spec(name, module, variant, environment, *requirements)
    for name, variant, (module, environment, *requirements) in (
        ("transformers", "eager", _TRANSFORMERS),
        ("transformers compiled", "compiled", _TRANSFORMERS),
        ("Optimum ONNX fp32", "fp32", _OPTIMUM),
        ("Optimum ONNX int8", "int8", _OPTIMUM),
        ("ONNX Runtime BeamSearch", "fp32", _BEAM_SEARCH),
        ("CTranslate2 fp32", "fp32", _CTRANSLATE2),
        ("CTranslate2 int8", "int8", _CTRANSLATE2),
    )
)
"""All of them. Several share an environment."""


def install_lines() -> list[tuple[str, tuple[str, ...]]]:
    """Every environment once, with what it needs."""
    return list({peer.environment: peer.requirements for peer in PEERS}.items())

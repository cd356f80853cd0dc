"""Bundles that several tests share, exported once per run."""

import signal
from pathlib import Path

import pytest
import torch

from drl.export import ExportOptions, export, save_checkpoint
from drl.export.model import DualRouterModel
from tests.models import DENSE, TINY, random_model, tiny_config

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A job in the background starts with Ctrl-C ignored, and would hand that on to the commands
    # that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # at these sizes threads cost more than they gain


@pytest.fixture(scope="session")
def tiny_model() -> DualRouterModel:
    """The eager model behind `tiny_bundle`."""
    return random_model(TINY)


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model: DualRouterModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of the model with every feature, without a tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save_checkpoint(folder, tiny_model)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An `ort-cpu` bundle of the model with every feature."""
    bundle = tmp_path_factory.mktemp("bundles") / "tiny"
    export(tiny_checkpoint, bundle)
    return bundle


@pytest.fixture(scope="session")
def portable_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a `portable` bundle."""
    bundle = tmp_path_factory.mktemp("bundles") / "portable"
    export(tiny_checkpoint, bundle, ExportOptions(target="portable"))
    return bundle


@pytest.fixture(scope="session")
def dense_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a plain Transformer: one path, no routing."""
    folder = tmp_path_factory.mktemp("dense")
    save_checkpoint(folder / "checkpoint", random_model(tiny_config(**DENSE)))
    export(folder / "checkpoint", folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="session")
def quantized_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int8 bundle of the model with every feature."""
    bundle = tmp_path_factory.mktemp("bundles") / "quantized"
    export(tiny_checkpoint, bundle, ExportOptions(precision="int8"))
    return bundle

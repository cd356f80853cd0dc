"""The eager model that backends are compared with, and where its weights come from."""

from dataclasses import dataclass, fields
from pathlib import Path

from drl.export.checkpoint import Checkpoint, load_checkpoint
from drl.export.model import DualRouterModel, ModelConfig
from drl.export.verification.bundle_weights import configuration, model_of_bundle
from drl.runtime.bundle import Bundle
from drl.runtime.errors import CheckpointError, ExportError


@dataclass(frozen=True)
class Reference:
    """An eager model in evaluation mode, and where it is from, for people."""

    model: DualRouterModel
    origin: str


def open_reference(bundle: Bundle, checkpoint: Path | None) -> Reference:
    """Load the eager model of a checkpoint, or rebuild it from the weights of an fp32 bundle.

    Raises:
        BundleError: The bundle does not hold what is needed to rebuild it.
        CheckpointError: The checkpoint is unusable, or that of another model.
        ExportError: The bundle's weights are rounded and no checkpoint is given.
    """
    if checkpoint is not None:
        return Reference(checkpoint_of(bundle, checkpoint).model(), str(checkpoint))
    if bundle.manifest.precision != "fp32":
        raise ExportError(
            f"{bundle.folder} has {bundle.manifest.precision} weights, from which the model cannot "
            "be rebuilt; give --checkpoint FOLDER"
        )
    return Reference(model_of_bundle(bundle), f"the weights in {bundle.folder}")


def checkpoint_of(bundle: Bundle, path: Path) -> Checkpoint:
    """Open a checkpoint and hold its configuration against the bundle's.

    Raises:
        CheckpointError: It is unusable, or that of another model; every field that differs is
            named.
    """
    checkpoint = load_checkpoint(path)
    ours, theirs = configuration(bundle), checkpoint.config
    differing = [
        f"{field.name} is {getattr(theirs, field.name)!r} there and "
        f"{getattr(ours, field.name)!r} in the bundle"
        for field in fields(ModelConfig)
        if getattr(ours, field.name) != getattr(theirs, field.name)
    ]
    if differing:
        raise CheckpointError(
            f"{path} is not the checkpoint of {bundle.folder}: {'; '.join(differing)}; give the "
            "one that it was made from"
        )
    return checkpoint

"""A bundle that reads and writes text, for the tests of the runtime and its commands."""

from pathlib import Path

import pytest

from drl.export import export, save_checkpoint
from tests.models import random_model, tiny_config
from tests.runtime.toy import VOCAB_SIZE, ToyBackend, byte_tokenizer


@pytest.fixture(params=[False, True], ids=["rows", "ranks"])
def ranking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether toys can give the likeliest tokens in the place of whole rows."""
    ranks: bool = request.param
    monkeypatch.setattr(ToyBackend, "ranks", ranks)
    return ranks


@pytest.fixture(scope="session")
def text_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a random model with a byte-level tokenizer. Treat it as read-only."""
    folder = tmp_path_factory.mktemp("text")
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    model = random_model(tiny_config(vocab_size=VOCAB_SIZE, decoder_start_token_id=0))
    save_checkpoint(folder / "checkpoint", model, folder / "tokenizer.json")
    export(folder / "checkpoint", folder / "bundle")
    return folder / "bundle"

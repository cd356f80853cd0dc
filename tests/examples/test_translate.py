import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from drl.export import ExportOptions, export, save_checkpoint
from drl.runtime import Engine, GenerationConfig, RequestError
from examples.translation import translate as example
from tests.models import DENSE, random_model, tiny_config

TEXTS = ["w5 w9 w14", "w30 w31"]
FRENCH = 58


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a random model with a tokenizer of words and two languages."""
    folder = tmp_path_factory.mktemp("translation")
    save_checkpoint(folder / "checkpoint", random_model(tiny_config(**DENSE)))
    names = ["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(3, 58)), "fra_Latn", "eng_Latn"]
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece("##")
    languages = ("</s>", "fra_Latn", "eng_Latn")
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in languages])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="eng_Latn $A </s>", special_tokens=[("eng_Latn", 59), ("</s>", 1)]
    )
    tokenizer.save(str(folder / "checkpoint" / "tokenizer.json"))
    export(folder / "checkpoint", folder / "bundle", ExportOptions(verify=False))
    return folder / "bundle"


def test_texts_are_translated_into_the_language_that_is_asked_for(bundle: Path) -> None:
    with Engine.from_bundle(bundle, threads=1) as engine:
        french = engine.generate(TEXTS, GenerationConfig(forced_bos_token_id=FRENCH))
        plain = engine.generate(TEXTS)
    assert all(result.tokens[0] == FRENCH for result in french)
    assert example.translate(str(bundle), TEXTS, to="fra_Latn") == [r.text for r in french]
    assert example.translate(str(bundle), TEXTS) == [r.text for r in plain]
    assert [r.text for r in french] != [r.text for r in plain]
    assert all("fra_Latn" not in result.text for result in french)


def test_an_unknown_language_is_named(bundle: Path) -> None:
    with pytest.raises(RequestError, match="no token 'xx_Latn'"):
        example.translate(str(bundle), TEXTS, to="xx_Latn")


def test_it_runs_as_a_command(bundle: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(Path(example.__file__)), str(bundle), *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    done = run(*TEXTS, "--to", "fra_Latn")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == example.translate(str(bundle), TEXTS, to="fra_Latn")
    failed = run(*TEXTS, "--to", "xx_Latn")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: there is no token 'xx_Latn'")
    assert "Traceback" not in failed.stderr

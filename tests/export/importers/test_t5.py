from pathlib import Path
import pytest

pytest.importorskip("transformers")
from tests.export.importers.oracle import assert_reproduced, random_sources
from tests.export.importers.reference import Drawing, Spec, reference


def test_a(tmp_path: Path) -> None:
    config = dict(
        vocab_size=80,
        d_model=48,
        d_kv=10,
        d_ff=56,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=3,
        decoder_start_token_id=0,
    )
    spec = Spec(
        "T5ForConditionalGeneration",
        config,
        random_sources([1, 7, 19, 150, 4, 33, 12], 80),
        Drawing(query=1.5 * 10**-0.5),
    )
    truth = reference(spec, tmp_path / "hf")
    print(truth.tokens)
    print(open(tmp_path / "hf/config.json").read())
    assert_reproduced(tmp_path / "hf", truth, tmp_path / "bundle")

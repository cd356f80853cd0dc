"""Unknown names of generation options: what to use here, or the nearest known one."""

import pytest

from drl.runtime import GenerationConfig, RequestError
from drl.runtime.options.names import _HINTS


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_tokens", "did you mean 'max_new_tokens'?"),
        ("num_beam", "did you mean 'num_beams'?"),
        ("eos_token_id", "the bundle says it; for further ones use stop_token_ids"),
        ("num_assistant_tokens", "there is no assisted generation here"),
        ("guidance_scale", "there is no classifier-free guidance here"),
        ("force_words_ids", "give json_schema, regex or grammar"),
        ("prefix_allowed_tokens_fn", "give a LogitsProcessor"),
        ("n", "use num_return_sequences"),
        ("prefix", "an argument beside the options, not one of them"),
    ],
)
def test_an_unknown_name_is_answered_with_what_to_use(name: str, hint: str) -> None:
    with pytest.raises(RequestError) as caught:
        GenerationConfig.from_options({name: 3})
    message = str(caught.value)
    assert message.startswith(f"unknown generation option {name!r} (")
    assert hint in message


def test_unknown_names_are_told_together() -> None:
    with pytest.raises(RequestError, match="unknown generation option 'xyz', 'topk'"):
        GenerationConfig.from_options({"xyz": 3, "topk": 1})
    with pytest.raises(RequestError, match="unknown generation option 3"):
        GenerationConfig.from_options({3: 3})  # type: ignore[dict-item]


def test_no_hint_is_for_a_known_name() -> None:
    assert not GenerationConfig.__dataclass_fields__.keys() & _HINTS.keys()
    for hint in _HINTS.values():
        assert "\n" not in hint

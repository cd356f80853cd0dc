import json

import pytest

from drl.export.model import ModelConfig, PathConfig, PathRouterConfig
from drl.runtime.errors import ConfigError
from tests.models import TINY, tiny_config


def test_a_configuration_survives_json() -> None:
    assert ModelConfig.from_dict(json.loads(json.dumps(TINY.to_dict()))) == TINY


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_config(
            num_heads=5,
            activation="swish",
            eos_token_id=60,
            top_groups=5,
            paths=(PathConfig("auto", layers=(3, 9), keep_ratio=0.33333),),
        )
    message = str(caught.value)
    for fragment in (
        "`num_heads` (5) is not a multiple of `kv_heads` (2)",
        "`activation` is 'swish'",
        "`eos_token_id` is 60, outside the vocabulary of 60",
        "`top_groups` (5) exceeds `groups` (4)",
        "`paths[0].name` is 'auto'",
        "`paths[0].layers` is [3, 9]",
        "`paths[0].keep_ratio` is 0.33333",
    ):
        assert fragment in message
    assert "\n" not in message


def test_all_faults_of_a_json_document_are_reported_at_once() -> None:
    document = TINY.to_dict() | {"d_modl": 8, "num_heads": "four", "tie_embeddings": 1}
    del document["d_ff"]
    document["paths"][0]["layer"] = [1]
    document["path_router"]["head"] = "argmax"
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(document)
    message = str(caught.value)
    for fragment in (
        "unknown field `d_modl` (did you mean `d_model`?)",
        "`num_heads` is 'four', not a whole number",
        "`tie_embeddings` is 1, not a bool",
        "missing field `d_ff`",
        "unknown field `paths[0].layer` (did you mean `layers`?)",
        "`path_router.head` is 'argmax', not one of linear, attention, greedy",
    ):
        assert fragment in message


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"d_model": 0}, "`d_model` is 0, must be positive"),
        ({"head_dim": 15}, "must be even for rotary positions"),
        ({"position_buckets": 3}, "`position_buckets` is 3, must be at least 4"),
        (
            {"position": "t5_bias", "position_buckets": 9, "position_max_distance": 4},
            "`position_max_distance` is 4, must exceed the 4 distances",
        ),
        ({"position": "alibi"}, "not one of rope, t5_bias, sinusoidal, learned, none"),
        ({"d_expert": 0}, "there are sparse layers"),
        ({"decoder_sparse_layers": (4,)}, "there are only layers 0 to 3"),
        ({"decoder_sparse_layers": (3, 1)}, "must ascend without repeats"),
        ({"experts_per_token": 5}, "hold only 4 experts"),
        ({"path_router": None}, "there is more than one path"),
        ({"path_router": PathRouterConfig(threshold=1.5)}, "must lie between 0 and 1"),
        ({"paths": ()}, "`paths` is empty"),
        ({"paths": (PathConfig("a", ()),)}, "runs at least one layer"),
        ({"paths": (PathConfig("a", (0,)), PathConfig("a", (0, 1)))}, "two paths are called 'a'"),
        ({"paths": (PathConfig("a", (0, 1)), PathConfig("b", (0,)))}, "fewest layers to the most"),
        ({"paths": (PathConfig("a", (0,), experts_per_token=0),)}, "must be positive"),
        ({"paths": (PathConfig("a", (0, 2)),)}, "decoder layers [1, 3] are on no path; leave them"),
        (
            {"paths": (PathConfig("a", (0,), keep_ratio=float("nan")),)},
            "`paths[0].keep_ratio` is nan",
        ),
        ({"norm_eps": float("nan")}, "`norm_eps` is nan, must be finite"),
        ({"attention_scale": float("inf")}, "`attention_scale` is inf, must be finite"),
        ({"max_source_length": 10**12}, "`max_source_length` is 1000000000000, must be at most"),
        ({"decoder_layers": 10**12}, "`decoder_layers` is 1000000000000, must be at most 1000"),
    ],
)
def test_values_that_do_not_fit_together_are_named(
    changes: dict[str, object], fragment: str
) -> None:
    with pytest.raises(ConfigError, match="config: ") as caught:
        tiny_config(**changes)
    assert fragment in str(caught.value)


def test_derived_values_follow_their_defaults() -> None:
    assert TINY.path_costs == (0.5, 0.75, 1.0)
    assert TINY.skippable_layers == {1, 2}
    assert TINY.softmax_scale == 0.25
    assert TINY.output_scale == 0.125
    assert tiny_config(attention_scale=1.0).softmax_scale == 1.0
    assert tiny_config(tie_embeddings=False).output_scale == 1.0

"""The shape of the model and the settings of its training."""

from dataclasses import dataclass, field

from drl.export.model import ModelConfig, PathConfig, PathRouterConfig
from examples.numbers.tokens import EOS, PAD, START


def model_config(vocab_size: int) -> ModelConfig:
    """A dual-router model of 2.8 million parameters with three decoding paths."""
    return ModelConfig(
        vocab_size=vocab_size,
        d_model=192,
        encoder_layers=3,
        decoder_layers=4,
        num_heads=6,
        kv_heads=2,
        head_dim=32,
        d_ff=256,
        encoder_sparse_layers=(1,),
        decoder_sparse_layers=(0, 2),
        groups=4,
        experts_per_group=2,
        top_groups=2,
        experts_per_token=2,
        d_expert=64,
        d_shared=128,
        paths=(
            PathConfig("fast", layers=(0,), experts_per_token=1, keep_ratio=0.5),
            PathConfig("balanced", layers=(0, 3), experts_per_token=1, keep_ratio=0.75),
            PathConfig("full", layers=(0, 1, 2, 3), experts_per_token=2, keep_ratio=1.0),
        ),
        path_router=PathRouterConfig(head="linear", hidden=64),
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=START,
        max_source_length=64,
        max_target_length=64,
    )


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of the first stage, which trains everything but the choice of the path.

    Attributes:
        seed: Of the weights and the data.
        steps: Optimiser steps.
        batch_size: Examples of a step.
        chunks: Parts of similar lengths into which a step's examples are cut.
        peak_rate: Learning rate after the warm-up; it then falls to 0 along a cosine.
        warmup_steps: Steps of the linear warm-up.
        weight_decay: Of the matrices; AdamW.
        clip: Largest norm of the gradient.
        cheap_weight: Weight of the cheaper path's loss beside the full path's.
        balance_weight: Weight of the load-balance loss.
        task_weights: How often each task is drawn.
    """

    seed: int = 7
    steps: int = 2400
    batch_size: int = 256
    chunks: int = 4
    peak_rate: float = 3e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0
    cheap_weight: float = 0.3
    balance_weight: float = 0.01
    task_weights: dict[str, float] = field(
        default_factory=lambda: {
            "english_to_chinese": 0.175,
            "chinese_to_english": 0.175,
            "arithmetic": 0.45,
            "repeat": 0.2,
        }
    )

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from threading import BrokenBarrierError

import pytest
import torch

from drl.export.model import DualRouterModel, generate
from examples.numbers.batches import IGNORED, make_batches, training_batches
from examples.numbers.dense_experts import use_dense_experts
from examples.numbers.losses import answer_losses, right_tokens
from examples.numbers.path_choice import (
    PathChoiceSettings,
    gather,
    train_path_router,
)
from examples.numbers.settings import TrainingSettings, model_config
from examples.numbers.stage_one import StageOne
from examples.numbers.tasks import TASKS, held_out_examples
from examples.numbers.team import Team, run_team
from examples.numbers.tokens import load_tokenizer
from examples.numbers.train import run_stage_one

TINY = replace(TrainingSettings(), steps=4, batch_size=24, chunks=2, warmup_steps=1)


def _weights(stage: StageOne) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in stage.model.parameters()])


def _loss(stage: StageOne) -> float:
    loss, tokens = stage.progress.sums[:2].tolist()
    stage.progress.reset()
    return loss / tokens


def test_a_few_steps_lower_the_loss() -> None:
    stage = StageOne(TINY, load_tokenizer())
    stage.train_step()
    before = _loss(stage)
    while stage.step < TINY.steps:
        stage.train_step()
    stage.progress.reset()
    stage.step = 0  # the first step's examples again
    stage.train_step()
    assert _loss(stage) < before - 1


def test_training_goes_on_exactly_where_it_stopped(tmp_path: Path) -> None:
    straight = StageOne(TINY, load_tokenizer())
    for _ in range(4):
        straight.train_step()
    first = StageOne(TINY, load_tokenizer())
    for _ in range(2):
        first.train_step()
    torch.save(first.state(), tmp_path / "state.pt")
    second = StageOne(TINY, load_tokenizer())
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(2):
        second.train_step()
    assert torch.equal(_weights(straight), _weights(second))


def test_a_state_of_other_settings_is_refused() -> None:
    state = StageOne(TINY, load_tokenizer()).state()
    other = StageOne(replace(TINY, peak_rate=1e-4), load_tokenizer())
    with pytest.raises(ValueError, match="other settings"):
        other.restore(state)


def test_two_workers_take_the_steps_of_one(tmp_path: Path) -> None:
    alone = StageOne(TINY, load_tokenizer())
    for _ in range(TINY.steps):
        alone.train_step()
    threads = torch.get_num_threads()
    team = Team(2, alone.shared_width)
    run_team(team, run_stage_one, TINY, False, tmp_path / "state.pt")
    torch.set_num_threads(threads)
    together = StageOne(TINY, load_tokenizer())
    together.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert together.step == TINY.steps
    # AdamW divides small gradients by their size, so rounding shows more than in a sum.
    assert (_weights(alone) - _weights(together)).abs().mean() < 1e-4


def test_dense_experts_compute_the_same() -> None:
    torch.manual_seed(0)
    model = DualRouterModel(model_config(load_tokenizer().get_vocab_size())).eval()
    batch = training_batches(
        load_tokenizer(), dict.fromkeys(TASKS, 1.0), seed=1, step=0, size=24, chunks=1
    )[0]
    inputs = (batch.source, batch.source_lengths, batch.target_in, batch.target_lengths)
    for path in range(len(model.config.paths)):
        expected = model(*inputs, path).logits
        use_dense_experts(model)
        found = model(*inputs, path).logits
        use_dense_experts(model, enabled=False)
        real = batch.labels != IGNORED
        torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-4)


def test_batches_hold_every_example_once_and_group_similar_lengths() -> None:
    examples = [example for task in TASKS for example in held_out_examples(task, 10)]
    tokenizer = load_tokenizer()
    batches = make_batches(examples, tokenizer, 3)
    answers = [
        tokenizer.decode(row[:length].tolist())
        for batch in batches
        for row, length in zip(batch.labels, batch.target_lengths, strict=True)
    ]
    assert sorted(answers) == sorted(example.answer for example in examples)
    longest = [int(batch.target_lengths.max()) for batch in batches]
    assert longest == sorted(longest)


def test_teacher_forcing_agrees_with_greedy_generation() -> None:
    torch.manual_seed(0)
    model = DualRouterModel(model_config(load_tokenizer().get_vocab_size())).eval()
    source = [[7, 9, 1], [30, 31, 32, 33, 1]]
    made = generate(model, source, path=2, max_new_tokens=6)
    for ids, result in zip(source, made, strict=True):
        tokens = torch.tensor([result.tokens])
        target = torch.cat((torch.tensor([[2]]), tokens[:, :-1]), dim=1)
        output = model(
            torch.tensor([ids]), torch.tensor([len(ids)]), target, torch.tensor([len(tokens[0])]), 2
        )
        assert right_tokens(output.logits, tokens).all()


def test_the_path_router_takes_the_path_that_is_worth_its_price() -> None:
    torch.manual_seed(0)
    model = DualRouterModel(model_config(load_tokenizer().get_vocab_size())).eval()
    settings = PathChoiceSettings(draws=4, draw_size=64, steps=2500, batch_size=128)
    evidence = gather(model, load_tokenizer(), settings)
    lengths = evidence.features[:, model.config.d_model]
    first, second = lengths.quantile(torch.tensor([0.3, 0.6]))
    hardness = (lengths > first).long() + (lengths > second).long()
    # Path p answers what is no harder than p; the others lose 1 nat.
    losses = (hardness[:, None] > torch.arange(3)).float()
    evidence = replace(evidence, losses=losses, right=losses == 0)
    train_path_router(model, evidence, settings)
    assert model.path_router is not None
    # Where no affordable path helps, nothing is worth paying for.
    for budget, wanted in ((1.0, hardness), (0.6, hardness % 2), (0.3, 0 * hardness)):
        budgets = torch.full((len(hardness),), budget)
        features = evidence.features.clone()
        features[:, model.config.d_model + 1] = budget
        chosen = model.path_router.choose(model.path_router.score(features), budgets)
        assert (torch.tensor(chosen) == wanted).float().mean() > 0.9


def _fail_in_one_worker(team: Team) -> None:
    if team.rank == 1:
        raise RuntimeError("out of memory, say")
    team.total(torch.zeros(1))


@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_fails_ends_the_others() -> None:
    with pytest.raises(BrokenBarrierError):
        run_team(Team(2, 1), _fail_in_one_worker)


def _stop_at_the_third_step(team: Team, result: torch.Tensor) -> None:
    steps = 0
    while not team.stopping():
        steps += 1
        if team.rank == 0 and steps == 3:
            os.kill(os.getpid(), signal.SIGINT)
    result[team.rank] = steps


def test_ctrl_c_stops_all_workers_at_the_same_step() -> None:
    result = torch.zeros(2).share_memory_()
    run_team(Team(2, 1), _stop_at_the_third_step, result)
    assert result.tolist() == [3, 3]


def test_answer_losses_are_those_of_whole_answers() -> None:
    logits = torch.tensor([[[0.0, 0.0], [2.0, 0.0]], [[0.0, 1.0], [5.0, 0.0]]])
    labels = torch.tensor([[0, 0], [1, IGNORED]])
    expected = [math.log(2) + math.log1p(math.exp(-2)), math.log1p(math.exp(-1))]
    assert answer_losses(logits, labels).tolist() == pytest.approx(expected)

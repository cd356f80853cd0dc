"""Which requests get places when: in their order, as rows become free."""

from pathlib import Path
from typing import Any

import pytest

from drl.runtime import DrlError, Engine
from drl.runtime.decoding import SequenceGroup
from drl.runtime.scheduler import Scheduler
from tests.runtime.comparing import hooked, random_prompts
from tests.runtime.toy import ToyBackend

pytestmark = pytest.mark.usefixtures("ranking")


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return hooked(tmp_path, max_batch_size=8)[0]


@pytest.fixture
def scheduler(engine: Engine) -> Scheduler:
    return Scheduler(engine.backend, engine.bundle.manifest, max_batch_size=8)


def backend_of(engine: Engine) -> ToyBackend:
    assert isinstance(engine.backend, ToyBackend)
    return engine.backend


def group(engine: Engine, prompt: Any = (5, 6), **options: Any) -> SequenceGroup:
    options = {"path": "full", **options}
    return engine._begin(engine.request(prompt, **options))


def finish(scheduler: Scheduler) -> int:
    steps = 0
    while not scheduler.idle:
        scheduler.step()
        steps += 1
        assert steps < 10_000
    return steps


def test_places_are_filled_several_at_a_time(engine: Engine, scheduler: Scheduler) -> None:
    for prompt in random_prompts(60):
        scheduler.add(group(engine, prompt))
    finish(scheduler)
    counts = backend_of(engine).encoded_rows
    assert sum(counts) == 60
    assert counts[0] == 8
    assert min(counts[:-1]) == 2  # a quarter of the places
    rows = [rows for _, rows in backend_of(engine).stepped_rows]
    assert max(rows) == 8
    assert sum(count >= 7 for count in rows) > 0.7 * len(rows)


def test_the_last_one_waiting_gets_the_first_free_place(
    engine: Engine, scheduler: Scheduler
) -> None:
    groups = [
        group(engine, min_new_tokens=count, max_new_tokens=count) for count in (3, *[20] * 7, 20)
    ]
    for each in groups:
        scheduler.add(each)
    for _ in range(3):
        scheduler.step()
    assert groups[0].done
    assert scheduler.waiting == 1
    scheduler.step()
    assert scheduler.waiting == 0
    assert groups[-1].steps == 1


def test_rows_never_exceed_the_batch_size(engine: Engine, scheduler: Scheduler) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"num_beams": 3},
        {"num_beams": 8},
        {"temperature": 1.0, "num_return_sequences": 5},
        {"num_beams": 4, "num_return_sequences": 4},
    ]
    groups = [
        group(engine, prompt, path="auto", **kinds[number % 5])
        for number, prompt in enumerate(random_prompts(40))
    ]
    for each in groups:
        scheduler.add(each)
    while not scheduler.idle:
        scheduler.step()
        assert scheduler.running <= 8
        for lane in scheduler.lanes:
            assert lane.cache.slots == len(lane.slots)
    assert all(each.done and each.failure is None for each in groups)


def test_requests_begin_in_their_order_however_many_rows_they_need(
    engine: Engine, scheduler: Scheduler
) -> None:
    wide = {"num_beams": 8}
    groups = [
        group(engine, min_new_tokens=6, max_new_tokens=6, **(wide if number % 4 == 3 else {}))
        for number in range(16)
    ]
    for each in groups:
        scheduler.add(each)
    begun: list[int] = []
    while not scheduler.idle:
        scheduler.step()
        begun += [i for i, each in enumerate(groups) if each.steps and i not in begun]
    assert begun == sorted(begun)  # a wide one is not passed by narrow ones for ever


def test_a_lane_is_for_a_path_and_a_number_of_beams(engine: Engine, scheduler: Scheduler) -> None:
    for path in ("fast", "full"):
        for beams in (1, 2):
            scheduler.add(group(engine, path=path, num_beams=beams, min_new_tokens=5))
    scheduler.step()
    assert len(scheduler.lanes) == 4
    assert scheduler.running == 6
    assert sorted(backend_of(engine).stepped_rows) == [(0, 1), (0, 2), (2, 1), (2, 2)]
    finish(scheduler)
    assert len(scheduler.lanes) == 4


def test_a_request_can_be_forgotten_wherever_it_is(engine: Engine, scheduler: Scheduler) -> None:
    groups = [group(engine, min_new_tokens=20) for _ in range(12)]
    for each in groups:
        scheduler.add(each)
    scheduler.discard(groups[3])
    scheduler.step()
    scheduler.discard(groups[0])
    scheduler.discard(groups[11])
    scheduler.discard(groups[11])
    assert (scheduler.running, scheduler.waiting) == (7, 2)
    finish(scheduler)
    assert [each.done for each in groups] == [
        number not in (0, 3, 11) for number in range(len(groups))
    ]


def test_all_that_is_under_way_is_told_why_it_ended(engine: Engine, scheduler: Scheduler) -> None:
    groups = [group(engine, min_new_tokens=20) for _ in range(12)]
    for each in groups:
        scheduler.add(each)
    scheduler.step()
    scheduler.abort(DrlError("enough"))
    assert scheduler.idle
    for each in groups:
        with pytest.raises(DrlError, match="enough"):
            each.result()
        with pytest.raises(DrlError, match="enough"):
            each.pieces()


def test_requests_being_encoded_are_told_as_well(
    engine: Engine, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [group(engine, path=path) for path in ("fast", "full")]
    for each in groups:
        scheduler.add(each)
    bridge, calls = engine.backend.bridge, []

    def second_fails(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise MemoryError
        return bridge(*arguments)

    monkeypatch.setattr(engine.backend, "bridge", second_fails)
    with pytest.raises(MemoryError):
        scheduler.step()
    assert scheduler.idle
    for each in groups:
        with pytest.raises(DrlError, match="cut short: MemoryError"):
            each.result()

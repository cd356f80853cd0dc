"""The figures of a model and the bars it must meet."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from examples.numbers.generators import AUTO, Answer, Generator, total_experts
from examples.numbers.tasks import TASKS, Example

LEAST_ACCURACY = {
    "english_to_chinese": 0.97,
    "chinese_to_english": 0.97,
    "arithmetic": 0.90,
    "repeat": 0.97,
}
LEAST_AUTO_SHARE = 0.97
LARGEST_LAYER_STEPS = 0.70
LEAST_PATH_SHARE = 0.05
LARGEST_EXPERT_LOAD = 0.50


@dataclass(frozen=True)
class Run:
    """Figures of one pass over all inputs.

    Attributes:
        accuracy: Exact-match share per task.
        overall: Exact-match share of all inputs.
        layer_steps: Decoder layers run, summed over all decoder steps.
        path_shares: Share of the inputs that took each path.
        experts: Uses of each expert `[E]`, per sparse layer.
    """

    accuracy: dict[str, float]
    overall: float
    layer_steps: int
    path_shares: dict[str, float]
    experts: dict[str, Tensor]


@dataclass(frozen=True)
class Bar:
    """One requirement, the figure that is held against it, and whether it is met."""

    name: str
    figure: str
    met: bool


@dataclass
class Report:
    """All figures: every path forced, and `auto` at several budgets."""

    inputs: dict[str, int]
    forced: dict[str, Run] = field(default_factory=dict)
    auto: dict[float, Run] = field(default_factory=dict)


def measure(generator: Generator, examples: Sequence[Example]) -> Report:
    """Answer all examples on every path, and on `auto` at each budget where a path comes in."""
    counts = {task: sum(example.task == task for example in examples) for task in TASKS}
    report = Report({task: count for task, count in counts.items() if count})
    for path in generator.paths:
        report.forced[path.name] = _run(generator, examples, path.name, 1.0)
    for budget in sorted({*(path.cost for path in generator.paths), 1.0}):
        report.auto[budget] = _run(generator, examples, AUTO, budget)
    return report


def bars(report: Report) -> list[Bar]:
    """Hold the figures against the bars."""
    full_name, full = list(report.forced.items())[-1]
    auto = report.auto[1.0]
    found = [
        Bar(
            f"{full_name} path, {task}, at least {LEAST_ACCURACY[task]:.0%}",
            f"{full.accuracy[task]:.1%}",
            full.accuracy[task] >= LEAST_ACCURACY[task],
        )
        for task in report.inputs
    ]
    kept = auto.overall / max(full.overall, 1e-9)
    found.append(
        Bar(
            f"auto keeps at least {LEAST_AUTO_SHARE:.0%} of the {full_name} path's accuracy",
            f"{kept:.1%}",
            kept >= LEAST_AUTO_SHARE,
        )
    )
    ratio = auto.layer_steps / full.layer_steps
    found.append(
        Bar(
            f"auto runs at most {LARGEST_LAYER_STEPS:.0%} of its decoder layer-steps",
            f"{ratio:.1%}",
            ratio <= LARGEST_LAYER_STEPS,
        )
    )
    for name in report.forced:
        share = max(run.path_shares[name] for run in report.auto.values())
        found.append(
            Bar(
                f"{name} path, chosen for at least {LEAST_PATH_SHARE:.0%} at some budget",
                f"{share:.1%}",
                share >= LEAST_PATH_SHARE,
            )
        )
    return [*found, *_load_bars({**report.forced, AUTO: auto})]


def _load_bars(runs: dict[str, Run]) -> list[Bar]:
    found = []
    for name, run in runs.items():
        least = min(_shares(counts).min().item() for counts in run.experts.values())
        most = max(_shares(counts).max().item() for counts in run.experts.values())
        found.append(
            Bar(
                f"{name}: every expert of a layer used, none above {LARGEST_EXPERT_LOAD:.0%}",
                f"{least:.1%} to {most:.1%}",
                least > 0 and most <= LARGEST_EXPERT_LOAD,
            )
        )
    return found


def _shares(counts: Tensor) -> Tensor:
    return counts.float() / counts.sum().clamp(min=1)


def _run(generator: Generator, examples: Sequence[Example], path: str, budget: float) -> Run:
    answers = generator.answer([example.prompt for example in examples], path, budget)
    right = [a.text == e.answer for a, e in zip(answers, examples, strict=True)]
    tasks = sorted({example.task for example in examples}, key=list(TASKS).index)
    accuracy = {
        task: _mean([r for r, e in zip(right, examples, strict=True) if e.task == task])
        for task in tasks
    }
    layers = {each.name: each.layers for each in generator.paths}
    return Run(
        accuracy=accuracy,
        overall=_mean(right),
        layer_steps=sum(layers[answer.path] * answer.steps for answer in answers),
        path_shares={name: _mean([a.path == name for a in answers]) for name in layers},
        experts=total_experts(answers),
    )


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / max(len(values), 1)


def wrong_answers(
    answers: Sequence[Answer], examples: Sequence[Example]
) -> list[tuple[Example, Answer]]:
    """The examples that were not answered exactly, with the answers they got."""
    pairs = zip(examples, answers, strict=True)
    return [(example, answer) for example, answer in pairs if example.answer != answer.text]


def load_table(report: Report) -> list[tuple[str, str, list[float]]]:
    """(path, sparse layer, share of each expert in percent) of every pass."""
    rows = []
    for name, run in {**report.forced, AUTO: report.auto[1.0]}.items():
        for layer, counts in run.experts.items():
            rows.append((name, layer, (100 * _shares(counts)).tolist()))
    return rows

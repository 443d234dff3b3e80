import collections
import subprocess
import sys

import pytest

from offload_jax.tasks.countdown import builder, solver
from offload_jax.tasks.countdown.builder import SPLITS, CountdownConfig, build, draw_problems

_SMALL = {"train": 60, "validation": 20, "test": 40}


@pytest.fixture(scope="module")
def problems():
    return draw_problems(CountdownConfig())


def test_splits_are_disjoint_and_free_of_duplicates(problems):
    assert {split: len(problems[split]) for split in SPLITS} == {
        "train": 8000,
        "validation": 500,
        "test": 2000,
    }
    everything = [problem for split in SPLITS for problem in problems[split]]
    assert all(numbers == tuple(sorted(numbers)) for numbers, _ in everything)
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("four", [0.0, 0.5, 1.0])
def test_the_papers_sizes_and_any_share_of_four_numbers_can_be_drawn(four):
    sizes = {"train": 5000, "validation": 200, "test": 1000}
    problems = draw_problems(CountdownConfig(four=four, numbers=(1, 99), **sizes))
    assert {split: len(drawn) for split, drawn in problems.items()} == sizes
    assert len({problem for drawn in problems.values() for problem in drawn}) == 6200


def test_every_problem_is_solvable_within_the_ranges(problems):
    for numbers, target in problems["test"]:
        assert solver.solutions(numbers, target)
        assert all(1 <= number <= 25 for number in numbers)
        assert 10 <= target <= 99
        assert target not in numbers


def test_each_split_has_the_share_of_four_numbers(problems):
    for split in SPLITS:
        counts = collections.Counter(len(numbers) for numbers, _ in problems[split])
        assert counts == {4: 0.3 * len(problems[split]), 3: 0.7 * len(problems[split])}


def test_the_splits_are_drawn_alike(problems):
    # Were test drawn after train, it would hold the problems with few combinations.
    means = {
        split: sum(len(set(numbers)) for numbers, _ in problems[split]) / len(problems[split])
        for split in ("train", "test")
    }
    assert abs(means["train"] - means["test"]) < 0.1


def test_the_problems_depend_on_the_config_alone():
    draw = lambda seed: draw_problems(CountdownConfig(seed=seed, **_SMALL))  # noqa: E731
    assert draw(0) == draw(0)
    assert not set(draw(0)["test"]) & set(draw(1)["test"])


def test_too_many_problems_are_a_clear_error(monkeypatch):
    monkeypatch.setattr(builder, "_STALLED", 2000)
    with pytest.raises(ValueError, match=r"config\.task\.train \+ .* asks for 700 problems of 3"):
        draw_problems(CountdownConfig(train=600, validation=50, test=50, four=0, numbers=(1, 4)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test": 0}, r"config\.task\.test = 0"),
        ({"four": 1.2}, r"config\.task\.four = 1\.2"),
        ({"numbers": (0, 25)}, r"config\.task\.numbers = \(0, 25\)"),
        ({"targets": (10, 200)}, r"config\.task\.targets = \(10, 200\)"),
    ],
)
def test_impossible_settings_are_refused_in_words(settings, message):
    with pytest.raises(ValueError, match=message):
        CountdownConfig(**settings)


def test_any_other_setting_is_another_dataset():
    others = [
        {"train": 61},
        {"validation": 21},
        {"test": 41},
        {"four": 0.31},
        {"numbers": (1, 24)},
        {"targets": (11, 99)},
        {"seed": 1},
    ]
    names = {CountdownConfig(**(_SMALL | other)).name for other in [{}, *others]}
    assert len(names) == len(others) + 1


def test_what_is_read_is_what_was_drawn_and_nothing_is_printed(tmp_path, capfd):
    config = CountdownConfig(**_SMALL)
    data = build(config, tmp_path)
    assert capfd.readouterr() == ("", "")
    drawn = draw_problems(config)
    ids = []
    for split in SPLITS:
        examples = list(data.as_data_source(split))
        read = [(tuple(map(int, e["numbers"])), int(e["target"])) for e in examples]
        assert read == drawn[split]
        ids += [int(example["id"]) for example in examples]
    assert ids == list(range(120))


def test_an_interrupted_build_is_repeated(tmp_path, monkeypatch):
    config = CountdownConfig(**_SMALL)
    generate = builder.Countdown._generate_examples

    def interrupted(self, problems, first_id):
        for i, example in enumerate(generate(self, problems, first_id)):
            if first_id and i == 5:
                raise KeyboardInterrupt
            yield example

    with monkeypatch.context() as patch:
        patch.setattr(builder.Countdown, "_generate_examples", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(config, tmp_path)
    assert len(build(config, tmp_path).as_data_source("test")) == 40


def test_a_build_is_not_repeated(tmp_path, monkeypatch):
    config = CountdownConfig(**_SMALL)
    build(config, tmp_path)
    monkeypatch.setattr(builder, "draw_problems", None)
    assert len(build(config, tmp_path).as_data_source("train")) == 60


def test_tensorflow_is_not_imported_and_nothing_is_logged(tmp_path):
    program = (
        "import sys; from absl import logging; logging.set_verbosity(logging.INFO);"
        "from offload_jax.tasks import make_task;"
        f"task = make_task('countdown', {str(tmp_path)!r}, train=9, validation=3, test=3);"
        "print(len(task.prompts('train')[:]), 'tensorflow' in sys.modules);"
        "assert logging.get_verbosity() == logging.INFO"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["9", "False"], "")

"""Generated problems: a chain of additions, subtractions and products, bare or told as a story.

Their difficulty is the number of steps and the size of the numbers. Every problem has one integer
as its answer, and nothing in a wrong answer shows that it is wrong: the device cannot check itself.
"""

import dataclasses
import random
import re
from collections.abc import Sequence

from offload_jax.settings import require

_NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gia", "Hugo", "Ida", "Jon")
_THINGS = ("apples", "pencils", "marbles", "stamps", "coins", "cards", "shells", "books")
_SAID = {
    "+": ("gets {n} more", "finds {n} more", "buys {n} more"),
    "-": ("loses {n}", "gives away {n}", "sells {n}"),
}
_BARE = ("What is {chain}?", "Compute {chain}.", "Find the value of {chain}.")
_MOST = 9_999  # of any value on the way
_LONGEST = 400  # characters of a question; bounds the work on hostile text


@dataclasses.dataclass(frozen=True)
class ProblemConfig:
    """How hard problems are.

    Attributes:
        steps: numbers of operations; equally frequent, but that no problem comes twice. A number
            that stands there twice is twice as frequent.
        largest: numbers that are added or subtracted lie in 1..largest.
        factor: a product's second factor lies in 2..factor.
        products: share of operations that are products.
        stories: share of problems that are told as a story (those without products).
    """

    steps: tuple = (1, 2, 3, 4)
    largest: int = 20
    factor: int = 5
    products: float = 0.2
    stories: float = 0.5

    def __post_init__(self):
        good = all(type(n) is int and 1 <= n <= 20 for n in self.steps)
        if not self.steps or not good:
            raise ValueError(f"config.task.steps is {self.steps}; it must be integers in 1..20.")
        if not 2 <= self.largest <= 999:
            raise ValueError(f"config.task.largest is {self.largest}; it must be in 2..999.")
        if not 2 <= self.factor <= 20:
            raise ValueError(f"config.task.factor is {self.factor}; it must be in 2..20.")
        for name in ("products", "stories"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"config.task.{name} is {getattr(self, name)}; it is a share.")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A chain of operations from left to right, and how it is asked."""

    first: int
    steps: tuple[tuple[str, int], ...]  # operator and number
    question: str

    def values(self) -> list[int]:
        """What there is after each step."""
        values = [self.first]
        for op, n in self.steps:
            values.append(apply(op, values[-1], n))
        return values[1:]


def apply(op: str, a: int, b: int) -> int:
    """One operation."""
    return {"+": a + b, "-": a - b, "*": a * b}[op]


def problems(config: ProblemConfig, count: int, seed: int) -> list[Problem]:
    """So many different problems, the same for the same settings; a longer list begins alike.

    Raises:
        ValueError: there are too few different problems.
    """
    rng = random.Random(f"arithmetic/{seed}")
    found: dict[tuple, Problem] = {}
    for _ in range(50 * count):
        if len(found) == count:
            break
        steps, problem = rng.choice(config.steps), None
        while problem is None:  # to draw their number anew would favour small ones
            problem = _draw(config, steps, rng)
        found.setdefault((problem.first, problem.steps), problem)
    if len(found) < count:
        raise ValueError(
            f"config.task asks for {count} different problems; with these steps and numbers only"
            f" {len(found)} were found."
        )
    return list(found.values())


def _draw(config: ProblemConfig, count: int, rng: random.Random) -> Problem | None:
    """A problem of `count` steps whose values stay within 0.._MOST; None if the draw left them."""
    value = first = rng.randint(2, config.largest)
    steps = []
    for _ in range(count):
        if rng.random() < config.products:
            op, n = "*", rng.randint(2, config.factor)
        else:
            op, n = rng.choice("+-"), rng.randint(1, config.largest)
        value = apply(op, value, n)
        if not 0 <= value <= _MOST:
            return None
        steps.append((op, n))
    told = rng.random() < config.stories and all(op != "*" for op, _ in steps)
    question = _story(first, steps, rng) if told else _bare(first, steps, rng)
    return Problem(first, tuple(steps), question)


def _bare(first: int, steps: Sequence[tuple[str, int]], rng: random.Random) -> str:
    return rng.choice(_BARE).format(chain=write_chain(first, steps))


def write_chain(first: int, steps: Sequence[tuple[str, int]]) -> str:
    """From left to right: brackets around what comes before a product, where it needs them."""
    chain, plain = str(first), True
    for op, n in steps:
        if op == "*" and not plain:
            chain = f"({chain})"
        chain, plain = f"{chain} {op} {n}", op == "*"
    return chain


def read_chain(question: str) -> tuple[int, tuple[tuple[str, int], ...]]:
    """First number and steps of a chain as `write_chain` writes it, with or without words around.

    Raises:
        ValueError: it is none.
    """
    text = question.strip()
    asked = [re.escape(form).replace(r"\{chain\}", r"(?P<chain>[\d+*() -]+)") for form in _BARE]
    tried = (re.fullmatch(form, text, re.ASCII) for form in (*asked, r"(?P<chain>[\d+*() -]+)=?"))
    found = next(filter(None, tried), None) if len(text) <= _LONGEST else None
    numbers = re.findall(r"\d{1,4}", found["chain"]) if found else []
    operators = re.findall(r"[-+*]", found["chain"]) if found else []
    steps = tuple(zip(operators, map(int, numbers[1:]), strict=False))
    same = bool(numbers) and write_chain(int(numbers[0]), steps)
    require(
        steps and same and same.replace(" ", "") == found["chain"].replace(" ", ""),
        "The question is not understood as a chain of operations from left to right; ask for"
        " example: (23 + 4) * 5",
    )
    return int(numbers[0]), steps


def _story(first: int, steps: Sequence[tuple[str, int]], rng: random.Random) -> str:
    name, things = rng.choice(_NAMES), rng.choice(_THINGS)
    said = [f"{name} has {first} {things}."]
    said += [f"{name} {rng.choice(_SAID[op]).format(n=n)}." for op, n in steps]
    return " ".join([*said, f"How many {things} does {name} have now?"])

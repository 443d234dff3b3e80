"""What a pretrained device LLM is told, in the paper's two structures and our own words.

Both ask for work first and allow a call at its end only. The cloud gets no system prompt.
"""

from offload_jax.tasks.parsing import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    CALL_MARKER,
    THINK_CLOSE,
    THINK_OPEN,
)

# Countdown: the work in its tags, then the answer in its own.
COUNTDOWN_SYSTEM = (
    f"You solve number puzzles. Work on the puzzle first, between {THINK_OPEN} and {THINK_CLOSE}:"
    " try combinations and check their values. Then write the expression that you have found"
    f" between {ANSWER_OPEN} and {ANSWER_CLOSE}. If you have searched thoroughly and found no"
    f" solution, write {CALL_MARKER} instead of an answer."
)
COUNTDOWN_LEAD = f"Let me work this out step by step.\n{THINK_OPEN}"  # how the reply begins

# MATH: numbered steps, the answer in a box.
STEPS = 6
MATH_SYSTEM = (
    "You solve mathematical problems. Work in numbered steps, one idea in each: Step 1, Step 2, and"
    " so on. End with the final answer in \\boxed{}."
)
MATH_HELP = (
    f" If you cannot solve the problem within {STEPS} steps, stop there and write {CALL_MARKER}"
    " instead of an answer."
)
MATH_CLOUD = "Put the final answer in \\boxed{}."

"""The paper's MATH experiment with Llama-3.2-1B-Instruct, for a TPU v5e slice of 16 chips or more.

`:gapg`, `:task_tuned`, … `:table`, `:smoke`: see configs/paper_forms.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(form: str = "gapg") -> ConfigDict:
    """The experiment in a form."""
    here = Path(__file__)
    config = runpy.run_path(str(here.with_name("math_llama32_3b.py")))["get_config"]()
    config.device.update({"width": 2048, "layers": 16, "heads": 32, "head_size": 64})
    config.learning.batch.micro_prompts = 16
    config.learning.reward.call = 0.2
    return runpy.run_path(str(here.with_name("paper_forms.py")))["in_form"](config, form)

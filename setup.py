"""Packaging of offload_jax. The base install runs the Countdown experiment; extras add the rest."""

from setuptools import find_packages, setup

setup(
    name="offload_jax",
    version="0.1.0",
    description="Teach a device LLM by reinforcement learning when to hand a question to the cloud",
    python_requires=">=3.11",
    packages=find_packages(include=["offload_jax", "offload_jax.*"]),
    package_data={"offload_jax.serving": ["page.html"]},
    install_requires=[
        "absl-py>=2.1",
        "array-record>=0.8",
        "flax>=0.10",
        "grain>=0.2.12",
        "jax>=0.7",
        "jaxtyping>=0.3",
        "matplotlib>=3.9",
        "ml-collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.4",
        "orbax-checkpoint>=0.11",
        "rich>=13.0",
        "safetensors>=0.5",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.8",
        "tokenizers>=0.21",
    ],
    extras_require={
        # Pretrained device LLMs: GGUF files and chat templates.
        "llm": ["gguf>=0.17", "jinja2>=3.1"],
        # A cloud behind an OpenAI-compatible endpoint.
        "cloud": ["genai-prices>=0.0.30", "openai>=1.60", "tenacity>=9.0"],
        # The pair behind an endpoint, with a cloud behind one; and a client.
        "serve": [
            "genai-prices>=0.0.30",
            "openai>=1.60",
            "starlette>=0.40",
            "tenacity>=9.0",
            "uvicorn>=0.30",
        ],
        # Published mathematical problems: the grader, and parquet files.
        "math": ["math-verify[antlr4_13_2]>=0.8", "pyarrow>=15.0"],
        # The compiler for TPUs, for `experiments.aot_compile` on a machine without one.
        "tpu": ["libtpu"],
        "test": [
            "genai-prices>=0.0.30",
            "gguf>=0.17",
            "hypothesis>=6.100",
            "jinja2>=3.1",
            "math-verify[antlr4_13_2]>=0.8",
            "openai>=1.60",
            "pyarrow>=15.0",
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "ruff>=0.8",
            "starlette>=0.40",
            "tenacity>=9.0",
            "uvicorn>=0.30",
        ],
        # What the parity tests compare with; without it they are skipped.
        "torch": ["torch==2.13.0", "transformers>=4.50"],
    },
)

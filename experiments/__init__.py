"""The task settings, recipes of them, and the runs a recipe stands for.

A top-level package: train.py does one run and knows no setting, while sweeps and reports both need the same list of
runs, with the same folders as the shell scripts.

    runs = expand(load_recipe("recipes/embedded_few_shot.yaml"))
"""

from experiments.recipe import RECIPES, First, Method, Published, Recipe, RecipeError
from experiments.recipe_file import load_recipe
from experiments.runs import Run, expand, with_needs
from experiments.settings import SETTINGS, Places, Setting, step_part, step_parts

__all__ = [
    "RECIPES",
    "SETTINGS",
    "First",
    "Method",
    "Places",
    "Published",
    "Recipe",
    "RecipeError",
    "Run",
    "Setting",
    "expand",
    "load_recipe",
    "step_part",
    "step_parts",
    "with_needs",
]

from .recipe import RECIPES, First, Method, Published, Recipe, RecipeError
from .recipe_file import load_recipe
from .runs import Run, expand, with_needs
from .settings import SETTINGS, Places, Setting, step_part, step_parts

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

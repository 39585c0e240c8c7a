"""What to train, on what, and how: the fields of a recipe, and the recipes."""

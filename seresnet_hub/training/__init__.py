"""Train a model by a recipe, on as many processes as were started."""

"""Train a model by a recipe, on as many processes as were started; read `train`, `loop` and `learner` first."""

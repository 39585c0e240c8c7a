"""How often a model is right, how sure it is, and where it is wrong."""

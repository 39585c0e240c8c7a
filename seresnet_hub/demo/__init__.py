"""A page on which a person tries models in a browser."""

"""Calls of the Hub within bounds, repeated where that helps, and repositories in the local cache."""

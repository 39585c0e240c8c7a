"""Export networks to files of other runtimes, each proven to compute the same; `export` calls the others in order."""

"""Convert checkpoints of other code bases into model folders, with proof; `convert` calls the others in order."""

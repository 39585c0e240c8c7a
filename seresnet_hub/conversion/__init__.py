"""Convert checkpoints of other code bases into model folders, with proof."""

"""Model cards: text made of facts and measured results."""

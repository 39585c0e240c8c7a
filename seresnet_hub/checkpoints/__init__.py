"""Read checkpoint files of other code bases without running anything in them, and rename their tensors."""

"""What a network attends to: the gates of its SE units, and maps of where it looks."""

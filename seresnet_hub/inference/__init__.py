"""What a model says of pictures, and how often it is right."""

"""What a model says of pictures, and the features it makes of them."""

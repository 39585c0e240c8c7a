"""What a recipe or a data set will look like, before anything is trained."""

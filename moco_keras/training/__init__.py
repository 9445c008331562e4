"""What every pre-training needs of `fit`, whatever the method."""

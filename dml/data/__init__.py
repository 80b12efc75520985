"""Image sources, one a file: each builds a `dataset.Source` of training and test records."""

"""What comes after a training: embed images, index and search them, export and publish the model."""

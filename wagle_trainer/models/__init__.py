"""What differs between models: the forward pass to log-probabilities, reference outputs, modes."""

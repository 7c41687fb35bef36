"""Settings of the protocols, with what they mean: values that every room may hold."""

"""What leaves a member in words: rephrased questions, and what they still give away."""
